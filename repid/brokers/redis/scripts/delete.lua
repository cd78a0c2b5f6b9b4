-- Deletes a queue that was emptied before, with the messages that are leased from it. Returns 0, and changes nothing,
-- if other messages have come into it since: the caller empties it again first.
local queue = arg
if call('HEXISTS', Q, queue) == 0 then return 1 end
local prefix = pack('>I2', #queue) .. queue
for _, set in ipairs({R, U, S, X}) do
  if call('ZLEXCOUNT', set, '[' .. prefix, '(' .. prefix .. '\255') > 0 then return 0 end
end
for _, lease in ipairs(call('ZRANGE', L, 0, -1)) do
  if is_of(lease, prefix) then
    call('ZREM', L, lease)
    remove(id_in(lease))
  end
end
call('HDEL', Q, queue)
call('HDEL', B, 'b' .. queue, 'd' .. queue)
tell()
return 1
