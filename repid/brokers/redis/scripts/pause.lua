-- {queue, paused}: pauses a queue, or ends its pause. Returns 0 if the queue is not declared.
if call('HEXISTS', Q, arg[1]) == 0 then return 0 end
call('HSET', Q, arg[1], arg[2] and 'p' or '')
if not arg[2] then
  earlier[pack('>I2', #arg[1]) .. arg[1]] = true
  wake()
end
return 1
