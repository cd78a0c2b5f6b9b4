-- Messages. Each has a record in M and one member in R (ready), U (suspects), S (scheduled) or L (leased).
local SUSPECT_FROM, MOST_LOST = 2, 10  -- repid/delivery/blame.py

local DEAD, EXPIRED, CANCELLED = 3, 4, 5  -- states of results: ../layout.py

local function render(t)
  local flags, times = t.kept, ''
  if t.due then flags, times = flags + FLAG_DUE, times .. pack('>I8', t.due) end
  if t.expires then flags, times = flags + FLAG_EXPIRES, times .. pack('>I8', t.expires) end
  if t.unrouted then flags, times = flags + FLAG_UNROUTED, times .. pack('>I8', t.unrouted) end
  return pack('>BI4I2I8I6I4I4I8', flags, t.attempt, t.lost, t.rank, t.order, t.offset, t.size, t.enqueued)
    .. times .. pack('>I2', #t.lane) .. t.lane .. t.rest
end

-- Stores the result of a message that has ended without a worker, unless its sender wants none.
local function conclude(t, id, state, failure)
  if bit.band(t.kept, FLAG_SILENT) == 0 then
    local result_id, ttl = result_in(t.kept, t.rest, id)
    store_result(result_id, state, '', failure, ttl)
  end
end

local function ready_member(t, id)
  return t.lane .. pack('>I8I6I4', t.rank, t.order, t.size) .. id
end

local function scheduled_member(t, id)
  return queue_of(t.lane) .. pack('>I8B', t.due, t.lost >= SUSPECT_FROM and 1 or 0) .. ready_member(t, id)
end

local function put_ready(t, id)
  call('ZADD', t.lost >= SUSPECT_FROM and U or R, 0, ready_member(t, id))
  arrived[t.lane] = (arrived[t.lane] or 0) + 1
  note(id)
end

local function put_scheduled(t, id)
  call('ZADD', S, 0, scheduled_member(t, id))
  local prefix = queue_of(t.lane)
  local first = call('ZSCORE', D, prefix)
  if not first or t.due < tonumber(first) then
    call('ZADD', D, t.due, prefix)
    earlier[prefix] = true
  end
  note(id)
end

-- Writes into D when the next message of a queue is due.
local function refresh_due(prefix)
  local head = call('ZRANGEBYLEX', S, '[' .. prefix, '(' .. prefix .. '\255', 'LIMIT', 0, 1)
  if head[1] then
    call('ZADD', D, read('>I8', head[1], #prefix + 1), prefix)
  else
    call('ZREM', D, prefix)
  end
end

-- Takes a message that waits out of its place. Returns 'ready' or 'scheduled', or nil if the message is leased.
local function take_out(t, id)
  if t.due and call('ZREM', S, scheduled_member(t, id)) == 1 then
    refresh_due(queue_of(t.lane))
    return 'scheduled'
  end
  if call('ZREM', t.lost >= SUSPECT_FROM and U or R, ready_member(t, id)) == 1 then return 'ready' end
end

-- Stores a dead letter, which part_dead.lua reads.
local function keep_letter(key, prefix, id, reason, failure, progress, record)
  local head, bytes = pack('>I2', #id) .. id, pack('>I8', key)
  call('HSET', Y, bytes, head .. pack('>B', #reason) .. reason
    .. pack('>I4', #failure) .. failure .. pack('>I4', #progress) .. progress .. record)
  call('ZADD', X, 0, prefix .. bytes)
  call('ZADD', I, 0, head .. bytes)
end

-- The key of a dead letter is the microsecond in which it died, or the next one that is not taken.
local last_key = now - 1

local function bury(t, id, record, reason, failure)
  local key = last_key + 1
  while call('HEXISTS', Y, pack('>I8', key)) == 1 do key = key + 1 end
  last_key = key
  local extras = call('HMGET', E, 'p' .. id, 'f' .. id)
  local progress = extras[1] or ''
  if failure == '' then failure = extras[2] or '' end
  keep_letter(key, queue_of(t.lane), id, reason, failure, progress, record)
end

-- Makes a dead letter of a leased message whose record cannot be read.
local function bury_damaged(lease, id, record, failure)
  bury({lane = prefix_in(lease)}, id, record, 'payload', failure)
  remove(id)
end

-- Ends a message that was taken out of its place. `reason` is that of its dead letter, or '' if it becomes none;
-- `state` is that of its result, or nil if none is stored.
local function finish(t, id, reason, failure, state)
  if reason ~= '' then
    -- needs: bury, render
    bury(t, id, render(t), reason, failure)
  end
  remove(id)
  if state then
    -- needs: conclude
    conclude(t, id, state, failure)
  end
end

-- Puts a message that was taken out of its place where its record says, or ends it if it has expired.
local function put_back(t, id)
  if t.expires and t.expires <= now then
    finish(t, id, 'expired', '', EXPIRED)
    return
  end
  call('HSET', M, id, render(t))
  if t.expires then call('ZADD', Z, t.expires, id) else call('ZREM', Z, id) end
  if t.due then put_scheduled(t, id) else put_ready(t, id) end
end

-- Ends those of the messages that wait. A leased one is checked when it comes back (put_back).
local function expire(ids)
  for _, id in ipairs(ids) do
    local record = call('HGET', M, id)
    local t = record and parse(record)
    if not t then
      call('ZREM', Z, id)
    elseif take_out(t, id) then
      finish(t, id, 'expired', '', EXPIRED)
    else
      call('ZADD', Z, '+inf', id)
    end
  end
end

-- Makes ready what is due: at most a thousand messages, so that the script is short. The next script goes on.
local function promote(prefixes)
  local left = 1000
  for _, prefix in ipairs(prefixes) do
    local due = call('ZRANGEBYLEX', S, '[' .. prefix, '(' .. prefix .. pack('>I8', now + 1), 'LIMIT', 0, left)
    if #due > 0 then
      local plain, suspects = {}, {}
      for _, member in ipairs(due) do
        local list = read('>B', member, #prefix + 9) == 1 and suspects or plain
        local ready = sub(member, #prefix + 10)
        local lane = lane_in(ready, #prefix)
        list[#list + 1] = '0'
        list[#list + 1] = ready
        arrived[lane] = (arrived[lane] or 0) + 1
        note(sub(ready, #lane + 19))
      end
      many('ZREM', S, due)
      if #plain > 0 then many('ZADD', R, plain) end
      if #suspects > 0 then many('ZADD', U, suspects) end
    end
    refresh_due(prefix)
    left = left - #due
    if left <= 0 then return end
  end
end

local MOST_EXPIRED, MOST_DUE = 500, 200  -- messages that one script ends, and queues in which it makes messages ready

-- Does what is to be done by now: ends messages that have expired, and makes ready those that are due.
local function advance()
  local expired = call('ZRANGEBYSCORE', Z, '-inf', now, 'LIMIT', 0, MOST_EXPIRED)
  if expired[1] then
    -- needs: expire
    expire(expired)
  end
  local due = call('ZRANGEBYSCORE', D, '-inf', now, 'LIMIT', 0, MOST_DUE)
  if due[1] then
    -- needs: promote
    promote(due)
  end
end
