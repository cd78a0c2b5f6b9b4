-- {{{name, former value or false, new value, next at or false, next at - every or false}, ...}, soon}: stores each new
-- value, unless another value than the former one is stored. Returns the names of those that it stored. Tells all
-- clients if one of these is due within `soon` seconds, or its next time is further away than its interval.
local stored, is_news, seconds = {}, false, now / 1000000
for _, one in ipairs(arg[1]) do
  local name = one[1]
  if call('HGET', SC, name) == one[2] then
    call('HSET', SC, name, one[3])
    if one[4] then call('ZADD', SN, one[4], name) else call('ZREM', SN, name) end
    if one[5] then call('ZADD', SA, one[5], name) else call('ZREM', SA, name) end
    if (one[4] and one[4] <= seconds + arg[2]) or (one[5] and one[5] > seconds) then is_news = true end
    stored[#stored + 1] = name
  end
end
if is_news then call('PUBLISH', ALL, 's') end
return stored
