local answers = publish(arg, false)
wake()
tell()
return with_dropped(answers)
