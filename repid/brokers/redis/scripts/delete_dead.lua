-- {queue, {key, ...}}: removes dead letters. Returns how many, or -1 if the queue is not declared.
if call('HEXISTS', Q, arg[1]) == 0 then return -1 end
local prefix = pack('>I2', #arg[1]) .. arg[1]
local removed = 0
for _, key in ipairs(arg[2]) do
  local letter = call('ZSCORE', X, prefix .. key) and call('HGET', Y, key)
  if letter then
    forget_dead(prefix, key, (id_in_letter(letter)))
    removed = removed + 1
  end
end
tell()
return removed
