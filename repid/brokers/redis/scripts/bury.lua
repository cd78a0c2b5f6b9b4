-- {lease, failure}: makes a dead letter of a message that was leased just now and cannot be read.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local lease, failure = arg[1], arg[2]
if call('ZREM', L, lease) == 1 then
  local id = id_in(lease)
  bury_damaged(lease, id, call('HGET', M, id) or '', failure)
  store_result(id, 2, '', failure, DAY)
end
tell()
return 1
