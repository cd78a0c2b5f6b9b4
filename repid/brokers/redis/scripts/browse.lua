-- {queue, category, limit, after or false}: returns the time and at most `limit` messages that follow the key `after`,
-- or 'q' if the queue is not declared.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local queue, category, limit, after = arg[1], arg[2], arg[3], arg[4]
advance()
wake()
tell()
if call('HEXISTS', Q, queue) == 0 then return 'q' end
local prefix = pack('>I2', #queue) .. queue
local first, last = '[' .. prefix, '(' .. prefix .. '\255'
local answers = {now}
if limit == 0 then return answers end

if category == 'ready' then
  local heads = {}
  for _, set in ipairs({R, U}) do
    local start = first
    while true do
      local found = call('ZRANGEBYLEX', set, start, last, 'LIMIT', 0, 1)
      if not found[1] then break end
      local lane = lane_in(found[1], #prefix)
      local from = after and '(' .. lane .. after .. '\255' or '[' .. lane
      for _, member in ipairs(call('ZRANGEBYLEX', set, from, '(' .. lane .. '\255', 'LIMIT', 0, limit)) do
        local rank, order = read('>I8I6', member, #lane + 1)
        heads[#heads + 1] = {rank, order, sub(member, #lane + 1, #lane + 14), sub(member, #lane + 19)}
      end
      start = '[' .. lane .. '\255'
    end
  end
  table.sort(heads, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
  for i = 1, math.min(limit, #heads) do
    local id = heads[i][4]
    answers[i + 1] = show('ready', heads[i][3], id, -1, call('HGET', M, id) or '')
  end
elseif category == 'scheduled' then
  local from = after and '(' .. prefix .. after or first
  for i, member in ipairs(call('ZRANGEBYLEX', S, from, last, 'LIMIT', 0, limit)) do
    local ready = sub(member, #prefix + 10)
    local id = sub(ready, #lane_in(ready, #prefix) + 19)
    local due = read('>I8', member, #prefix + 1)
    answers[i + 1] = show('scheduled', sub(member, #prefix + 1), id, due, call('HGET', M, id) or '')
  end
elseif category == 'leased' then
  local start, behind = '-inf', nil
  if after then start, behind = read('>I8', after), sub(after, 9) end
  local leases = call('ZRANGEBYSCORE', L, start, '+inf', 'WITHSCORES')
  for i = 1, #leases, 2 do
    local lease, ends = leases[i], tonumber(leases[i + 1])
    if behind and ends == start then
      if lease == behind then behind = nil end
    elseif is_of(lease, prefix) and #answers <= limit then
      local id = id_in(lease)
      answers[#answers + 1] = show('leased', pack('>I8', ends) .. lease, id, ends, call('HGET', M, id) or '', lease)
    end
  end
else
  local from = after and '(' .. prefix .. after or first
  for i, member in ipairs(call('ZRANGEBYLEX', X, from, last, 'LIMIT', 0, limit)) do
    answers[i + 1] = show_dead(sub(member, #prefix + 1))
  end
end
return answers
