-- Bounded queues; the rules are in repid/delivery/bounds.py. B has two fields for a queue. 'b' and the name: the
-- bounds, which are the largest number of messages and of bytes (0 means any number) and what is done with a message
-- that has no room. 'd' and the name: how many messages the queue has dropped.
local DROPPED, DROP_OLDEST = 6, 2  -- this state of a result, and the index in WHEN_FULL, counted from 0: ../layout.py

local is_bounded = call('EXISTS', B) == 1

local bounds = {}  -- queue -> false, or its bounds and how much waits; only queues that this script has looked at

local dropped = {}  -- queue -> how many messages this script has dropped

-- Functions, if a queue is bounded.
local bounds_of, is_refused, refuse_outbox, drop_excess
if is_bounded then
  -- needs: lane_in, remove, parse, result_in, store_result
  local function volume_in(set, prefix)
    local sum, start = 0, '[' .. prefix
    while true do
      local found = call('ZRANGEBYLEX', set, start, '(' .. prefix .. '\255', 'LIMIT', 0, 1000)
      for _, member in ipairs(found) do
        local ready = set == S and sub(member, #prefix + 10) or member
        sum = sum + read('>I4', ready, #lane_in(ready, #prefix) + 15)
      end
      if #found < 1000 then return sum end
      start = '(' .. found[#found]
    end
  end

  function bounds_of(queue)
    local known = bounds[queue]
    if known == nil then
      local packed = call('HGET', B, 'b' .. queue)
      known = false
      if packed then
        local prefix = pack('>I2', #queue) .. queue
        known = {prefix = prefix, size = 0, volume = 0}
        known.max_size, known.max_bytes, known.when_full = read('>I8I8B', packed)
        for _, set in ipairs({R, U, S}) do
          known.size = known.size + call('ZLEXCOUNT', set, '[' .. prefix, '(' .. prefix .. '\255')
          if known.max_bytes > 0 then known.volume = known.volume + volume_in(set, prefix) end
        end
      end
      bounds[queue] = known
    end
    return known
  end

  local function has_room(b, size, volume, more, more_volume)
    return (b.max_size == 0 or size + more <= b.max_size) and (b.max_bytes == 0 or volume + more_volume <= b.max_bytes)
  end

  local function admits(b, more, volume)
    if b.when_full == DROP_OLDEST then return has_room(b, 0, 0, 0, volume) end
    return has_room(b, b.size, b.volume, more, volume)
  end

  -- Returns whether a new message is refused: it has no room, or an earlier message of the same call had none. A
  -- message whose id is alive is not refused here, but as a duplicate.
  function is_refused(b, id, size)
    if call('HEXISTS', M, id) == 1 then return false end
    if b.is_closed then return true end
    if admits(b, 1, size) then return false end
    b.is_closed = has_room(b, 0, 0, 1, size)
    return true
  end

  -- Returns the queue that has no room for its part of an outbox, or nil if every queue has room.
  function refuse_outbox(entries)
    bounds = {}
    local wanted = {}
    for _, entry in ipairs(entries) do
      local id, queue, _, size = read(ENTRY, entry)
      if bounds_of(queue) and call('HEXISTS', M, id) == 0 then
        local sum = wanted[queue] or {0, 0}
        wanted[queue] = {sum[1] + 1, sum[2] + size}
      end
    end
    for queue, sum in pairs(wanted) do
      if not admits(bounds[queue], sum[1], sum[2]) then return queue end
    end
  end

  -- Returns the oldest message that waits: its member, the set of that member, and its member of R. That is the ready
  -- message that would be handed out first; if none is ready, the scheduled message that is due first.
  local function oldest(prefix)
    local best, best_set, best_rank, best_order
    for _, set in ipairs({R, U}) do
      local start = '[' .. prefix
      while true do
        local member = call('ZRANGEBYLEX', set, start, '(' .. prefix .. '\255', 'LIMIT', 0, 1)[1]
        if not member then break end
        local lane = lane_in(member, #prefix)
        local rank, order = read('>I8I6', member, #lane + 1)
        if not best or rank < best_rank or (rank == best_rank and order < best_order) then
          best, best_set, best_rank, best_order = member, set, rank, order
        end
        start = '(' .. lane .. '\255'
      end
    end
    if best then return best, best_set, best end
    local member = call('ZRANGEBYLEX', S, '[' .. prefix, '(' .. prefix .. '\255', 'LIMIT', 0, 1)[1]
    if member then return member, S, sub(member, #prefix + 10) end
  end

  local function drop(member, set, ready, prefix)
    local id = sub(ready, #lane_in(ready, #prefix) + 19)
    local record = call('HGET', M, id)
    call('ZREM', set, member)
    remove(id)
    local t = parse(record or '')
    if bit.band(t.kept, FLAG_WANTED) ~= 0 then
      local result_id, ttl = result_in(t.kept, t.rest, id)
      store_result(result_id, DROPPED, '', '', ttl)
    end
  end

  -- Drops the oldest messages of the queues that hold more than their bounds allow, if something new has come into
  -- them: they may have held more before they were bounded, and what is refused drops nothing.
  function drop_excess()
    for queue, b in pairs(bounds) do
      local count = 0
      while b and b.has_come and b.when_full == DROP_OLDEST and not has_room(b, b.size, b.volume, 0, 0) do
        local member, set, ready = oldest(b.prefix)
        if not member then break end
        drop(member, set, ready, b.prefix)
        b.size = b.size - 1
        b.volume = b.volume - read('>I4', ready, #lane_in(ready, #b.prefix) + 15)
        count = count + 1
      end
      if count > 0 then
        call('HINCRBY', B, 'd' .. queue, count)
        dropped[queue] = (dropped[queue] or 0) + count
      end
    end
  end
end

-- Returns the answers of a script that may have dropped messages. If it has, {queue, count, ...} is returned with them.
local function with_dropped(answers)
  if not next(dropped) then return answers end
  local told = {}
  for queue, count in pairs(dropped) do
    told[#told + 1] = queue
    told[#told + 1] = count
  end
  return {answers, told}
end
