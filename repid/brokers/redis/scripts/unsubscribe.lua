-- {consumer, taken}: removes a consumer.
give_back(arg[1], arg[2])
strike_off({arg[1]})
wake()
tell()
return 1
