-- Returns the bounds of a queue ('' if it has none) and the number of consumers that read it.
local prefix = pack('>I2', #arg) .. arg
local readers = 0
local consumers = call('HGETALL', C)
for i = 1, #consumers, 2 do
  if tonumber(call('ZSCORE', CA, consumers[i]) or '0') > now then
    for _, field in ipairs(cmsgpack.unpack(consumers[i + 1])) do
      if queue_of(field) == prefix then
        readers = readers + 1
        break
      end
    end
  end
end
return {call('HGET', B, 'b' .. arg) or '', readers}
