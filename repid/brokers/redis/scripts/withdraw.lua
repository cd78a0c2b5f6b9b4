-- {consumer, {prefix, ...}, taken}: the consumer does not wait any more. If it is not in SL, it was woken for a message
-- that it will not claim, or has found one that is too big for it: then the other consumers of these queues are woken.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
give_back(arg[1], arg[3])
if call('HDEL', SL, arg[1]) == 0 then
  for _, prefix in ipairs(arg[2]) do earlier[prefix] = true end
end
wake()
tell()
return 1
