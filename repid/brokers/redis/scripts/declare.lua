-- {queue, ...}: creates the queues that do not exist.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
for _, queue in ipairs(arg) do
  call('HSETNX', Q, queue, '')
end
return 1
