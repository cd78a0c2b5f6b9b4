-- A script with this part works although the memory of the server is full, because it frees more than it takes. Redis
-- checks only the first write of a script, so the first write is one that takes no memory.
call('HDEL', SL, '')
