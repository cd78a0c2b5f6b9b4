-- ARGV: an entry for each message that is published; see part_publish.lua.

-- Most calls publish one message while no queue is bounded and nobody watches. That takes less than half of the steps,
-- and is worth its own lines: who publishes one message after another waits for each.
local id, queue, lane, size, offset, delay, ttl, flags, rest = read(ENTRY, ARGV[1])
if #ARGV == 1 and delay == 0 and ttl < 0 and flags == 0 then
  local others = call('EXISTS', B, WT, V, SL)
  local results = others > 0 and call('EXISTS', B, WT, V) or 0
  if results == 0 or call('EXISTS', B, WT) == 0 then
    local state = call('HGET', Q, queue)
    if not state then return 'q' end
    local rank = now + offset
    local record = pack('>BI4I2I8I6I4I4I8I2', flags, 1, 0, rank, order, offset, size, now, #lane) .. lane .. rest
    if call('HSETNX', M, id, record) == 0 then return 'd' end
    local member = lane .. pack('>I8I6I4', rank, order, size) .. id
    if results == 1 then
      call('HDEL', V, id)
      call('ZREM', VX, id)
    end
    if others > results then
      -- needs: wake_sleepers
      arrived[lane] = 1
      offer = state == '' and {lane = lane, member = member, id = id, record = record, size = size, is_apart = true}
      if wake_sleepers() then return 'a' end
    end
    call('ZADD', R, '0', member)
    return 'a'
  end
end

-- pieces
-- needs: publish, wake, tell, with_dropped
local answers = publish(ARGV, false)
wake()
tell()
return with_dropped(answers)
