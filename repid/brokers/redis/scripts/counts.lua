-- {queue, ...}: returns {ready, scheduled, leased, dead, paused, bounds, dropped} for each queue, or the name of the
-- first one that is not declared.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
advance()
local leased, answers = {}, {}
for _, lease in ipairs(call('ZRANGE', L, 0, -1)) do
  local prefix = prefix_in(lease)
  leased[prefix] = (leased[prefix] or 0) + 1
end
for i, queue in ipairs(arg) do
  local state = call('HGET', Q, queue)
  if not state then return queue end
  local prefix = pack('>I2', #queue) .. queue
  local first, last = '[' .. prefix, '(' .. prefix .. '\255'
  answers[i] = {
    call('ZLEXCOUNT', R, first, last) + call('ZLEXCOUNT', U, first, last),
    call('ZLEXCOUNT', S, first, last), leased[prefix] or 0, call('ZLEXCOUNT', X, first, last), state == '' and 0 or 1,
    call('HGET', B, 'b' .. queue) or '', tonumber(call('HGET', B, 'd' .. queue) or '0')
  }
end
wake()
tell()
return answers
