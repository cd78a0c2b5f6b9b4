-- {limit, slack}: returns {now, when the next schedule is due or '', value, ...}, with the values of at most `limit`
-- schedules that are due. Also due is an interval's schedule whose next time is further away than the interval and
-- `slack` seconds: the clock was set back.
local seconds = time[1] + time[2] / 1000000
local names = call('ZRANGEBYSCORE', SN, '-inf', seconds, 'LIMIT', 0, arg[1])
local known = {}
for _, name in ipairs(names) do known[name] = true end
local too_far = '(' .. string.format('%.17g', seconds + arg[2])
for _, name in ipairs(call('ZRANGEBYSCORE', SA, too_far, '+inf', 'LIMIT', 0, arg[1])) do
  if #names < arg[1] and not known[name] then names[#names + 1] = name end
end
local following = call('ZRANGEBYSCORE', SN, '(' .. string.format('%.17g', seconds), '+inf', 'LIMIT', 0, 1, 'WITHSCORES')
local answer = {string.format('%.17g', seconds), following[2] or ''}
if #names > 0 then
  for _, value in ipairs(call('HMGET', SC, unpack(names))) do answer[#answer + 1] = value or '' end
end
return answer
