-- {id, ...}: returns the time, and for each id a list of the messages that have it: the live one, then dead letters.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local answers = {now}
local leases  -- id of each leased message -> {lease, when it ends}; read when it is needed for the first time

local function lease_of(id)
  if not leases then
    leases = {}
    local all = call('ZRANGE', L, 0, -1, 'WITHSCORES')
    for i = 1, #all, 2 do leases[id_in(all[i])] = {all[i], tonumber(all[i + 1])} end
  end
  return leases[id]
end

advance()
for i, id in ipairs(arg) do
  local found = {}
  local record = call('HGET', M, id)
  if record then
    local t = parse(record)
    if t.due and call('ZSCORE', S, scheduled_member(t, id)) then
      local prefix = queue_of(t.lane)
      found[1] = show('scheduled', sub(scheduled_member(t, id), #prefix + 1), id, t.due, record)
    elseif call('ZSCORE', t.lost >= SUSPECT_FROM and U or R, ready_member(t, id)) then
      found[1] = show('ready', pack('>I8I6', t.rank, t.order), id, -1, record)
    else
      local one = lease_of(id)
      if one then found[1] = show('leased', pack('>I8', one[2]) .. one[1], id, one[2], record, one[1]) end
    end
  end
  local prefix = pack('>I2', #id) .. id
  for _, member in ipairs(call('ZRANGEBYLEX', I, '[' .. prefix, '(' .. prefix .. '\255')) do
    found[#found + 1] = show_dead(sub(member, #prefix + 1))
  end
  answers[i + 1] = found
end
wake()
tell()
return answers
