-- {entry, ...}: publishes messages; see part_publish.lua.
local answers = publish(arg, false)
wake()
tell()
return with_dropped(answers)
