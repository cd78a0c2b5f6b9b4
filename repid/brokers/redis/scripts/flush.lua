-- {queue, limit}: removes at most `limit` messages that are ready or scheduled. Returns how many, or -1 if the queue is
-- not declared.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local queue, limit = arg[1], arg[2]
if call('HEXISTS', Q, queue) == 0 then return -1 end
advance()
local prefix = pack('>I2', #queue) .. queue
local removed = 0
for _, set in ipairs({R, U, S}) do
  local found = call('ZRANGEBYLEX', set, '[' .. prefix, '(' .. prefix .. '\255', 'LIMIT', 0, limit - removed)
  for _, member in ipairs(found) do
    local ready = set == S and sub(member, #prefix + 10) or member
    remove(sub(ready, #lane_in(ready, #prefix) + 19))
  end
  if #found > 0 then many('ZREM', set, found) end
  removed = removed + #found
  if removed >= limit then break end
end
refresh_due(prefix)
wake()
tell()
return removed
