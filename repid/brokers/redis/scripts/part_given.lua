-- Puts back the message that a consumer was handed while it slept (`hand_over` in part_wake.lua), unless the consumer
-- has taken it: then `taken` is the beginning of the lease.
local function give_back(consumer, taken)
  local entered = call('HGET', SL, consumer)
  if not entered then return end
  local _, lease = cmsgpack.unpack(entered)
  if type(lease) ~= 'string' or sub(lease, 1, 16) == taken or call('ZREM', L, lease) == 0 then return end
  -- needs: id_in, parse, bury_damaged, finish, CANCELLED, put_back
  local id = id_in(lease)
  local record = call('HGET', M, id)
  if not record then return end
  local t = parse(record)
  if t.damaged then
    bury_damaged(lease, id, record, '')
  elseif call('HEXISTS', E, 'k' .. id) == 1 then
    finish(t, id, '', '', CANCELLED)
  else
    put_back(t, id)
  end
end
