-- What this script does must go on where the memory is full: it ends more than it begins. Redis refuses a script that
-- asks for memory only at its first write, so the first write is one that asks for none.
call('HDEL', SL, '')
