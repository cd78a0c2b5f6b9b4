-- {consumer, taken}: removes a consumer.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
give_back(arg[1], arg[2])
strike_off({arg[1]})
wake()
tell()
return 1
