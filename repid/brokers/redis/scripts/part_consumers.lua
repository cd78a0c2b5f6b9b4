-- Removes consumers. Then W, which holds until when each field is asked for, is filled again from the consumers that
-- remain.
local function strike_off(consumers)
  if #consumers == 0 then return end
  local left = 0
  for _, consumer in ipairs(consumers) do
    local packed = call('HGET', C, consumer)
    if packed then
      for _, field in ipairs(cmsgpack.unpack(packed)) do
        call('HDEL', W, field)
        earlier[queue_of(field)] = true
      end
      left = left + 1
    end
    call('HDEL', C, consumer)
    call('ZREM', CA, consumer)
    call('HDEL', SL, consumer)
  end
  if left == 0 then return end
  local others = call('HGETALL', C)
  for i = 1, #others, 2 do
    local alive = tonumber(call('ZSCORE', CA, others[i]) or '0')
    for _, field in ipairs(cmsgpack.unpack(others[i + 1])) do
      if tonumber(call('HGET', W, field) or '0') < alive then call('HSET', W, field, alive) end
    end
  end
end
