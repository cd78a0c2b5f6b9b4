-- {{queue, packed bounds or ''}, ...}: declares the queues, and stores their bounds or removes them.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
for _, one in ipairs(arg) do
  call('HSETNX', Q, one[1], '')
  if one[2] == '' then call('HDEL', B, 'b' .. one[1]) else call('HSET', B, 'b' .. one[1], one[2]) end
end
return 1
