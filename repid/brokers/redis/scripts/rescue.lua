-- Takes back leases that have ended, at most `arg` of them. Returns how many.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
advance()
local ended = call('ZRANGEBYSCORE', L, '-inf', now, 'LIMIT', 0, arg)
for _, lease in ipairs(ended) do
  call('ZREM', L, lease)
  local id = id_in(lease)
  local record = call('HGET', M, id)
  if record then
    local t = parse(record)
    if t.damaged then
      bury_damaged(lease, id, record, '')
    elseif call('HEXISTS', E, 'k' .. id) == 1 then
      finish(t, id, '', '', CANCELLED)
    else
      t.lost = t.lost + 1
      t.due = nil
      if t.lost >= MOST_LOST then
        local suspected = tonumber(call('HGET', E, 't' .. id) or now)
        local leased, worker = read('>I8', lease, 19), sub(lease, 28, queue_at(lease) - 1)
        local told = cmsgpack.pack({t.lost, worker, (now - leased) / 1000000, (now - suspected) / 1000000})
        finish(t, id, 'poison', '\1' .. told, DEAD)
      else
        if t.lost == SUSPECT_FROM then call('HSET', E, 't' .. id, now) end
        put_back(t, id)
      end
    end
  end
end
purge(100)
wake()
tell()
return #ended
