-- {consumer, lifetime, known, {field, ...}, taken}; ARGV[2]: {channel, takes}. Notes what a consumer takes, and that it
-- is alive for `lifetime` microseconds. Returns '', or the name of a queue that is not declared. A consumer that is
-- `known` comes back after its link broke: such queues are declared instead, and it does not wait where it did before.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
for _, take in ipairs(cmsgpack.unpack(ARGV[2])[2]) do
  if call('HEXISTS', Q, take[2]) == 0 then
    if not arg[3] then return take[2] end
    call('HSET', Q, take[2], '')
  end
end
call('HSET', C, arg[1], cmsgpack.pack(arg[4]))
call('ZADD', CA, now + arg[2], arg[1])
for _, field in ipairs(arg[4]) do
  if tonumber(call('HGET', W, field) or '0') < now + arg[2] then call('HSET', W, field, now + arg[2]) end
end
if arg[3] then
  -- needs: give_back, wake, tell
  give_back(arg[1], arg[5])
  call('HDEL', SL, arg[1])
  wake()
  tell()
end
return ''
