call('ZREM', SN, arg)
call('ZREM', SA, arg)
return call('HDEL', SC, arg)
