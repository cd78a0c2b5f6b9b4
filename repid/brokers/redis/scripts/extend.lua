-- {lease time, {lease, ...}}: starts each lease anew. Returns '1', or '0' if the lease is lost, for each, as one text.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local scores = call('ZMSCORE', L, unpack(arg[2]))
local moved, answers, until_ = {}, {}, score_of(now + arg[1])
for i, score in ipairs(scores) do
  answers[i] = score and '1' or '0'
  if score then
    moved[#moved + 1] = until_
    moved[#moved + 1] = arg[2][i]
  end
end
if #moved > 0 then call('ZADD', L, unpack(moved)) end
return table.concat(answers)
