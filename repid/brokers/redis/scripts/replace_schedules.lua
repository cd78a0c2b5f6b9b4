-- {{name, former value or false, new value, next at or false, next at - every or false}, ...}: stores each new value,
-- unless another value than the former one is stored. Returns the names of those that it stored.
local stored = {}
for _, one in ipairs(arg) do
  local name = one[1]
  if call('HGET', SC, name) == one[2] then
    call('HSET', SC, name, one[3])
    if one[4] then call('ZADD', SN, one[4], name) else call('ZREM', SN, name) end
    if one[5] then call('ZADD', SA, one[5], name) else call('ZREM', SA, name) end
    stored[#stored + 1] = name
  end
end
return stored
