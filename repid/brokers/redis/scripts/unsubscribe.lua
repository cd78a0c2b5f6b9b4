strike_off({arg})
wake()
return 1
