-- {{lease, progress or false}, ...}: notes that runs have begun, and how far they have come.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
for _, one in ipairs(arg) do
  local lease, progress = one[1], one[2]
  if call('ZSCORE', L, lease) then
    local id = id_in(lease)
    if call('ZREM', Z, id) == 1 then
      local record = call('HGET', M, id)
      if record then
        local t = parse(record)
        t.expires = nil
        if not t.damaged then call('HSET', M, id, render(t)) end
      end
    end
    if progress then call('HSET', E, 'p' .. id, progress) end
    note(id)
  end
end
tell()
return 1
