-- {lifetime, {{consumer, {field, ...}}, ...}}: these consumers are alive, for `lifetime` microseconds from now. Removes
-- what consumers that are not alive any more have left behind.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local alive = now + arg[1]
for _, one in ipairs(arg[2]) do
  call('HSET', C, one[1], cmsgpack.pack(one[2]))
  call('ZADD', CA, alive, one[1])
  for _, field in ipairs(one[2]) do
    if tonumber(call('HGET', W, field) or '0') < alive then call('HSET', W, field, alive) end
  end
end
strike_off(call('ZRANGEBYSCORE', CA, '-inf', now, 'LIMIT', 0, 100))
purge(1000)
local unseen = call('ZRANGEBYSCORE', WX, '-inf', now, 'LIMIT', 0, 1000)
if #unseen > 0 then
  call('HDEL', WT, unpack(unseen))
  call('ZREM', WX, unpack(unseen))
end
wake()
return 1
