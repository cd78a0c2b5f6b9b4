-- {consumer, limit, lease, nonce, alone, size, first, worker, {{lane, most}, ...}, {{{lane or prefix, ...}, most},
-- ...}, taken, waits, was_asleep}: leases messages to a consumer, or enters it in SL as one that sleeps if there is
-- none and it waits: what is handed to a consumer that does not wait is out of the reach of others for a while. Returns
-- {now, microseconds until the next message is due or -1, number of suspects, lease end, lease and record of each
-- message}. With limit 0 only the suspects are counted. `size` is the largest sum of the payloads, `first` the largest
-- payload if only one message is taken. ARGV[2] is the consumer's entry in SL, {channel, takes}; behind it the script
-- stores the terms on which the consumer may be handed a message while it sleeps. One that was asleep and is not in SL
-- any more was woken for a message, and may take another one now: what it leaves it wakes others for.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local consumer, limit, lease, nonce, alone, size, first, worker, caps, groups =
  arg[1], arg[2], arg[3], arg[4], arg[5], arg[6], arg[7], arg[8], arg[9], arg[10]
local entry = cmsgpack.unpack(ARGV[2])
local is_entered = limit > 0 and call('HEXISTS', SL, consumer) == 1
if is_entered then
  -- needs: give_back
  give_back(consumer, arg[11])
end
-- What other scripts begin with, written out: to create the function for it takes a tenth of a claim.
local expired = call('ZRANGEBYSCORE', Z, '-inf', now, 'LIMIT', 0, MOST_EXPIRED)
if expired[1] then
  -- needs: expire
  expire(expired)
end
local due_now = call('ZRANGEBYSCORE', D, '-inf', now, 'LIMIT', 0, MOST_DUE)
if due_now[1] then
  -- needs: promote
  promote(due_now)
end

local cap_of, group_of, full = {}, {}, {}
for _, cap in ipairs(caps) do
  cap_of[cap[1]] = cap[2]
  if cap[2] <= 0 then full[#full + 1] = cap[1] end
end
for _, group in ipairs(groups) do
  local shared = {left = group[2]}
  for _, name in ipairs(group[1]) do
    group_of[name] = group_of[name] or shared
    if shared.left <= 0 then full[#full + 1] = name end
  end
end

-- Calls visit(lane, prefix, member) with the first member of each lane of this set from which the consumer may take.
local function each_lane(set, visit)
  for _, take in ipairs(entry[2]) do
    local prefix, lanes = take[1], take[3]
    if call('HGET', Q, take[2]) == '' then
      local wanted = {}
      for _, lane in ipairs(lanes or {}) do wanted[lane] = true end
      local start, stop = '[' .. prefix, '(' .. prefix .. '\255'
      while true do
        local found = call('ZRANGEBYLEX', set, start, stop, 'LIMIT', 0, 1)
        if not found[1] then break end
        local lane = lane_in(found[1], #prefix)
        local is_taken = not lanes or wanted[lane]
        if not is_taken then
          -- needs: is_stray
          is_taken = is_stray(lane, prefix)
        end
        if is_taken then visit(lane, prefix, found[1]) end
        start = '[' .. lane .. '\255'
      end
    end
  end
end

if limit == 0 then
  -- needs: wake, tell
  local count = 0
  each_lane(U, function(lane)
    count = count + call('ZLEXCOUNT', U, '[' .. lane, '(' .. lane .. '\255')
  end)
  wake()
  tell()
  return {now, -1, count}
end

local taken, lanes_of, set = {}, {}, R
local is_stretch = false  -- whether the members that are taken follow each other in R
local is_too_big = false

if alone and call('EXISTS', U) == 1 then
  local best_rank, best_order
  each_lane(U, function(lane, _, member)
    local rank, order = read('>I8I6', member, #lane + 1)
    if not best_rank or rank < best_rank or (rank == best_rank and order < best_order) then
      best_rank, best_order, taken[1], lanes_of[1] = rank, order, member, lane
    end
  end)
  set = taken[1] and U or R
end

-- A heap of the lanes from which the consumer may take, by the rank of the first message that is left in each.
local heap = {}
if #taken == 0 then
  each_lane(R, function(lane, prefix, member)
    local group = group_of[lane] or group_of[prefix]
    local left = math.min(cap_of[lane] or limit, group and group.left or limit, limit)
    if left > 0 then
      heap[#heap + 1] = {lane = lane, left = left, group = group, member = member, found = {member}, at = 1}
    end
  end)
end
if #heap == 1 then
  local lane = heap[1].lane
  is_stretch = true
  local found = heap[1].found
  if heap[1].left > 1 then
    found = call('ZRANGEBYLEX', R, '[' .. lane, '(' .. lane .. '\255', 'LIMIT', 0, heap[1].left)
  end
  for i, member in ipairs(found) do
    local own = read('>I4', member, #lane + 15)
    size = size - own
    if (i > 1 and size < 0) or (i == 1 and own > first) then
      is_too_big = i == 1
      break
    end
    taken[i], lanes_of[i] = member, lane
  end
elseif #heap > 1 then
  local function is_before(one, other)
    return one.rank < other.rank or (one.rank == other.rank and one.order < other.order)
  end

  local function sink(at)
    local size_, moved = #heap, heap[at]
    while 2 * at <= size_ do
      local child = 2 * at
      if child < size_ and is_before(heap[child + 1], heap[child]) then child = child + 1 end
      if not is_before(heap[child], moved) then break end
      heap[at] = heap[child]
      at = child
    end
    heap[at] = moved
  end

  local function drop_first()
    heap[1] = heap[#heap]
    heap[#heap] = nil
    if #heap > 1 then sink(1) end
  end

  local function place(cursor)
    cursor.rank, cursor.order, cursor.size = read('>I8I6I4', cursor.member, #cursor.lane + 1)
  end

  -- The first message of the first lane was taken: moves that lane on to its next message, or removes it from the heap.
  local function advance_first(at_once)
    local first_ = heap[1]
    first_.left, first_.at = first_.left - 1, first_.at + 1
    if first_.left > 0 and first_.at > #first_.found then
      local after, stop = '(' .. first_.member, '(' .. first_.lane .. '\255'
      first_.found = call('ZRANGEBYLEX', R, after, stop, 'LIMIT', 0, math.min(first_.left, at_once))
      first_.at = 1
    end
    first_.member = first_.left > 0 and first_.found[first_.at]
    if first_.member then
      place(first_)
      sink(1)
    else
      drop_first()
    end
  end

  local at_once = #heap > 8 and 8 or limit
  for _, cursor in ipairs(heap) do place(cursor) end
  for at = math.floor(#heap / 2), 1, -1 do sink(at) end
  while #taken < limit and heap[1] do
    local best = heap[1]
    if best.group and best.group.left <= 0 then
      drop_first()
    else
      size = size - best.size
      if (#taken > 0 and size < 0) or (#taken == 0 and best.size > first) then
        is_too_big = #taken == 0
        break
      end
      taken[#taken + 1], lanes_of[#taken + 1] = best.member, best.lane
      if best.group then best.group.left = best.group.left - 1 end
      advance_first(at_once)
    end
  end
end

local due
for _, take in ipairs(entry[2]) do
  local moment = tonumber(call('ZSCORE', D, take[1]) or nil)
  if moment and (not due or moment < due) then due = moment end
end
local answer = {now, due and math.max(due - now, 0) or -1, 0}
if #taken == 0 then
  if is_too_big or not arg[12] then
    call('HDEL', SL, consumer)
  else
    local packed = #full > 0 and cmsgpack.pack({entry[1], entry[2], full}) or ARGV[2]
    call('HSET', SL, consumer, packed .. cmsgpack.pack({nonce, lease, worker, math.min(first, MOST_GIVEN)}))
  end
else
  -- needs: many, queue_of, score_of
  local ids, leases, tails = {}, {}, {}
  local until_, since = score_of(now + lease), pack('>I8B', now, #worker) .. worker
  for i, member in ipairs(taken) do
    local lane = lanes_of[i]
    local tail = tails[lane]
    if not tail then
      tail = since .. queue_of(lane)
      tails[lane] = tail
    end
    local id = sub(member, #lane + 19)
    ids[i] = id
    leases[2 * i - 1] = until_
    leases[2 * i] = nonce .. pack('>I2', i) .. tail .. id
    if watching then note(id) end
  end
  if is_stretch then
    call('ZREMRANGEBYLEX', R, '[' .. taken[1], '[' .. taken[#taken])
  else
    many('ZREM', set, taken)
  end
  many('ZADD', L, leases)
  for i = 1, #ids, 1000 do
    local records = call('HMGET', M, unpack(ids, i, math.min(i + 999, #ids)))
    for j, record in ipairs(records) do
      local at = 2 * (i + j - 1)
      answer[at + 2] = leases[at]
      answer[at + 3] = record or ''
    end
  end
  if call('EXISTS', E) == 1 then
    local fields = {}
    for i, id in ipairs(ids) do fields[i] = 'p' .. id end
    many('HDEL', E, fields)
  end
  call('HDEL', SL, consumer)
end
if arg[13] and not is_entered then
  each_lane(R, function(lane)
    arrived[lane] = (arrived[lane] or 0) + call('ZLEXCOUNT', R, '[' .. lane, '(' .. lane .. '\255')
  end)
end
if next(arrived) or next(earlier) then
  -- needs: wake
  wake()
end
if changed[1] then
  -- needs: tell
  tell()
end
return answer
