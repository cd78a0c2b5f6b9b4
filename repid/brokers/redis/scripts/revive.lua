-- {queue, {key, ...}}: makes dead letters ready again. Returns a character for each: 'a' it is ready, 'd' its id is
-- alive, 'n' there is no such dead letter, 'u' it cannot be read. Returns {'q'} if the queue is not declared.
local queue = arg[1]
if call('HEXISTS', Q, queue) == 0 then return {'q'} end
local prefix = pack('>I2', #queue) .. queue
local answers = {}
advance()
for i, key in ipairs(arg[2]) do
  local letter = call('ZSCORE', X, prefix .. key) and call('HGET', Y, key)
  if not letter then
    answers[i] = 'n'
  else
    local id, _, record = read_letter(letter)
    local t = parse(record)
    if t.damaged then
      answers[i] = 'u'
    elseif call('HEXISTS', M, id) == 1 then
      answers[i] = 'd' .. id
    else
      forget_dead(prefix, key, id)
      t.attempt, t.lost, t.due, t.unrouted, t.expires = 1, 0, nil, nil, nil
      if bit.band(t.kept, FLAG_TTL) ~= 0 then t.expires = now + read('>I8', t.rest) end
      t.rank, t.order, t.enqueued = now + t.offset, order, now
      order = order + 1
      local result_id = result_in(t.kept, t.rest, id)
      call('HDEL', V, result_id)
      call('ZREM', VX, result_id)
      note(result_id)
      put_back(t, id)
      answers[i] = 'a'
    end
  end
end
wake()
tell()
return answers
