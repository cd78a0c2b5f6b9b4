-- {{consumer, taken}, ...}: these consumers have taken what they were given last: it is not put back any more.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
for _, one in ipairs(arg) do
  local lease = given_to(one[1])
  if lease and sub(lease, 1, 16) == one[2] then call('HDEL', SL, one[1]) end
end
return 1
