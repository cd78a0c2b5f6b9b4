-- {lifetime, {{consumer, {field, ...}}, ...}, late, epoch}: these consumers are alive, for `lifetime` microseconds from
-- now. Removes what consumers that are not alive any more have left behind. Of one that has been silent for `late`
-- microseconds (unless that is 0) although its client is connected, the process is frozen: it does not sleep any more,
-- and what it was given goes to another one. It is woken, too, which it hears of when it goes on. Returns what names
-- the data of this prefix: `epoch`, if it has no name and a queue is declared.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
if call('EXISTS', Q) == 1 then call('SETNX', EP, arg[4]) end
local alive = now + arg[1]
for _, one in ipairs(arg[2]) do
  call('HSET', C, one[1], cmsgpack.pack(one[2]))
  call('ZADD', CA, alive, one[1])
  for _, field in ipairs(one[2]) do
    if tonumber(call('HGET', W, field) or '0') < alive then call('HSET', W, field, alive) end
  end
end
for _, consumer in ipairs(arg[3] > 0 and call('ZRANGEBYSCORE', CA, '-inf', alive - arg[3], 'LIMIT', 0, 100) or {}) do
  local entered = call('HGET', SL, consumer)
  if entered and call('PUBLISH', (cmsgpack.unpack(entered))[1], 'r') > 0 then
    give_back(consumer, '')
    call('HDEL', SL, consumer)
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
tell()
return call('GET', EP) or ''
