-- {queue, ...}: creates the queues that do not exist.
for _, queue in ipairs(arg) do
  call('HSETNX', Q, queue, '')
end
return 1
