-- {entry, ...}: publishes messages; see part_publish.lua.

-- Most calls publish one message while no queue is bounded and nobody sleeps or watches. That takes less than half of
-- the steps, and is worth its own lines: who publishes one message after another waits for each.
local id, queue, lane, size, offset, delay, ttl, flags, rest = unpack(arg[1])
if #arg == 1 and delay == 0 and ttl < 0 and flags == 0 and call('EXISTS', B, SL, WT) == 0 then
  if call('HEXISTS', Q, queue) == 0 then return 'q' end
  local rank, order = now + offset, call('INCR', N)
  local record = pack('>BI4I2I8I6I4I4I8I2', flags, 1, 0, rank, order, offset, size, now, #lane) .. lane .. rest
  if call('HSETNX', M, id, record) == 0 then return 'd' end
  call('ZADD', R, 0, lane .. pack('>I8I6I4', rank, order, size) .. id)
  if call('EXISTS', V) == 1 then
    call('HDEL', V, id)
    call('ZREM', VX, id)
  end
  return 'a'
end

-- pieces
local answers = publish(arg, false)
wake()
tell()
return with_dropped(answers)
