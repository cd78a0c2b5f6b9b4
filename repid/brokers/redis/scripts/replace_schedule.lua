-- {name, former value or false, new value, next at or false, next at - every or false}: stores the new value. Returns
-- 0, and changes nothing, if another value than the former one is stored.
if call('HGET', SC, arg[1]) ~= arg[2] then return 0 end
call('HSET', SC, arg[1], arg[3])
if arg[4] then call('ZADD', SN, arg[4], arg[1]) else call('ZREM', SN, arg[1]) end
if arg[5] then call('ZADD', SA, arg[5], arg[1]) else call('ZREM', SA, arg[1]) end
return 1
