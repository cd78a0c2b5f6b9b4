-- {channel or false, watch time, {{id, result id}, ...}}: returns how each message stands. With a channel, that client
-- is told of the next change of each.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local answers = {}
advance()
for i, pair in ipairs(arg[3]) do
  local id, result_id = pair[1], pair[2]
  local record, holds = call('HGET', M, id), arg[2]
  local result = call('HGET', V, result_id)
  if result then
    local expires = read('>I8', result, 9)
    if expires <= now then result = false else holds = math.min(holds, expires - now) end
  end
  local state, attempt, progress, cancelling = 'gone', 0, '', 0
  if record then
    local t = parse(record)
    attempt = t.attempt
    progress = call('HGET', E, 'p' .. id) or ''
    cancelling = call('HEXISTS', E, 'k' .. id)
    if t.due and call('ZSCORE', S, scheduled_member(t, id)) then
      state, holds = 'scheduled', math.min(holds, t.due - now)
    elseif call('ZSCORE', t.lost >= SUSPECT_FROM and U or R, ready_member(t, id)) then
      state = 'ready'
    else
      state = 'leased'
    end
    if state ~= 'leased' and t.expires then holds = math.min(holds, t.expires - now) end
  else
    local prefix = pack('>I2', #id) .. id
    local last = call('ZREVRANGEBYLEX', I, '(' .. prefix .. '\255', '[' .. prefix, 'LIMIT', 0, 1)
    local letter = last[1] and call('HGET', Y, sub(last[1], #prefix + 1))
    if letter then
      local _, how_far, buried = read_letter(letter)
      state, attempt, progress = 'dead', parse(buried).attempt, how_far
    end
  end
  answers[i] = {state, attempt, progress, cancelling, result or '', math.max(holds, 0)}
  if arg[1] then
    for _, one in ipairs(pair) do
      local channel = call('HGET', WT, one)
      call('HSET', WT, one, (channel and channel ~= arg[1]) and '*' or arg[1])
      call('ZADD', WX, now + 2 * arg[2], one)
    end
  end
end
wake()
tell()
return answers
