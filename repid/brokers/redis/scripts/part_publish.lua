-- Stores new messages. An entry holds id, queue, lane, size, offset, delay, ttl or -1, kept flags, rest. Returns a
-- character for each: 'a' accepted, 'd' its id is alive, 'q' its queue is not declared, 'f' its queue is full. With
-- `declaring`, queues are declared, and no message is refused because there is no room for it.
local function publish(entries, declaring)
  local answers, known, adds, results = {}, {}, {}, {}
  local first  -- of the messages in `adds`: it is offered if it is the only one
  for i, entry in ipairs(entries) do
    local id, queue, lane, size, offset, delay, ttl, flags, rest = read(ENTRY, entry)
    local state = known[queue]  -- '' if it is not paused
    if state == nil then
      state = call('HGET', Q, queue)
      if declaring and not state then
        call('HSET', Q, queue, '')
        state = ''
      end
      known[queue] = state
    end
    local b = state and is_bounded and bounds_of(queue)
    if not state then
      answers[i] = 'q'
    elseif b and not declaring and is_refused(b, id, size) then
      answers[i] = 'f'
    else
      local start = now + delay
      local times = ''
      local all_flags = flags
      if delay > 0 then all_flags, times = all_flags + FLAG_DUE, pack('>I8', start) end
      if ttl >= 0 then all_flags, times = all_flags + FLAG_EXPIRES, times .. pack('>I8', start + ttl) end
      local rank = start + offset
      local record = pack('>BI4I2I8I6I4I4I8', all_flags, 1, 0, rank, order, offset, size, now)
        .. times .. pack('>I2', #lane) .. lane .. rest
      if call('HSETNX', M, id, record) == 0 then
        answers[i] = 'd'
      else
        answers[i] = 'a'
        note(id)
        if b then b.size, b.volume, b.has_come = b.size + 1, b.volume + size, true end
        results[#results + 1] = (result_in(flags, rest, id))
        if ttl >= 0 then call('ZADD', Z, start + ttl, id) end
        local member = lane .. pack('>I8I6I4', rank, order, size) .. id
        order = order + 1
        if delay > 0 then
          local prefix = queue_of(lane)
          call('ZADD', S, 0, prefix .. pack('>I8B', start, 0) .. member)
          local first = call('ZSCORE', D, prefix)
          if not first or start < tonumber(first) then
            call('ZADD', D, start, prefix)
            earlier[prefix] = true
          end
        else
          adds[#adds + 1] = '0'
          adds[#adds + 1] = member
          first = first or {is_open = state == '', lane = lane, member = member, id = id, record = record, size = size}
          arrived[lane] = (arrived[lane] or 0) + 1
        end
      end
    end
  end
  if #adds > 0 then many('ZADD', R, adds) end
  offer = #adds == 2 and first.is_open and first
  if #results > 0 and call('EXISTS', V) == 1 then
    many('HDEL', V, results)
    many('ZREM', VX, results)
    for _, id in ipairs(results) do note(id) end
  end
  if is_bounded then drop_excess() end  -- last: a message that is dropped at once may leave a result
  return table.concat(answers)
end
