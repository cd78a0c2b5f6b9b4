-- Removes the schedule of this name. Returns whether there was one.
call('ZREM', SN, arg)
call('ZREM', SA, arg)
return call('HDEL', SC, arg)
