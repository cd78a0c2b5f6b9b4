-- {consumer, taken}: a consumer has taken what it was given last: it is not put back any more.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local lease = given_to(arg[1])
if lease and sub(lease, 1, 16) == arg[2] then call('HDEL', SL, arg[1]) end
return 1
