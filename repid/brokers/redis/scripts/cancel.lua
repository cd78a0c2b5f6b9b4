-- {id, ...}: removes messages that wait, and asks the workers of leased ones to end their runs. Returns a word for
-- each.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local answers = {}
advance()
for i, id in ipairs(arg) do
  local record = call('HGET', M, id)
  if not record then
    answers[i] = 'unknown'
  else
    local t = parse(record)
    if take_out(t, id) then
      finish(t, id, '', '', CANCELLED)
      answers[i] = 'cancelled'
    else
      if call('HSETNX', E, 'k' .. id, '') == 1 then
        call('PUBLISH', ALL, 'e')
        note(id)
      end
      answers[i] = 'requested'
    end
  end
end
wake()
tell()
return answers
