-- Every script begins with these lines; ../layout.py says what each key holds. A script that must work although the
-- memory of the server is full, because it frees more than it takes, begins with a write that takes none: of the writes
-- of a script, Redis checks only the first one.
local Q, M, R, U, S, D, L, Z, X, Y, I, E, V, VX, C, CA, W, SL, WT, WX, SC, SN, SA, B, EP = unpack(KEYS)
local call, sub, byte, pack, read = redis.call, string.sub, string.byte, struct.pack, struct.unpack
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
-- The order of the next message among those of one rank: each takes one and adds 1. To store a message takes longer
-- than a microsecond, so the orders of a later script are higher.
local order = now % 281474976710656
local ENTRY = '>I2c0I2c0I2c0I4I4i8i8BI4c0'  -- the format of a new message: see part_publish.lua

local arg = cmsgpack.unpack(ARGV[1])

local ALL = sub(Q, 1, -7) .. 'all'  -- the channel that every client listens to: Q ends in "queues"

local watching = call('EXISTS', WT) == 1
local changed = {}  -- ids of messages and results that have changed and may be watched

local function note(id)
  if watching then changed[#changed + 1] = id end
end

-- Returns a moment as text, for use as the score of many members: Redis would convert a number once for each of them,
-- which takes longer than adding the member.
local function score_of(moment)
  return string.format('%.0f', moment)
end

-- Calls a command with any number of arguments, some thousands at a time: the stack of Lua holds no more.
local function many(command, key, list)
  local sum = 0
  for i = 1, #list, 2000 do
    sum = sum + call(command, key, unpack(list, i, math.min(i + 1999, #list)))
  end
  return sum
end

-- Tells the clients that watch what has changed. Each is told once; it is registered again when it looks again.
local function tell()
  for i = 1, #changed, 1000 do
    local ids = {unpack(changed, i, math.min(i + 999, #changed))}
    local watchers = call('HMGET', WT, unpack(ids))
    for j, channel in ipairs(watchers) do
      if channel then
        call('PUBLISH', channel == '*' and ALL or channel, 'i' .. ids[j])
        call('HDEL', WT, ids[j])
        call('ZREM', WX, ids[j])
      end
    end
  end
end

local function purge(limit)
  local old = call('ZRANGEBYSCORE', VX, '-inf', now, 'LIMIT', 0, limit)
  if #old > 0 then
    many('HDEL', V, old)
    many('ZREM', VX, old)
  end
end

local function store_result(id, state, payload, failure, ttl)
  call('HSET', V, id, pack('>I8I8B', now, now + ttl, state) .. pack('>I4', #failure) .. failure .. payload)
  call('ZADD', VX, now + ttl, id)
  note(id)
end

local function forget_extras(ids)
  if call('EXISTS', E) == 1 then
    local fields = {}
    for _, id in ipairs(ids) do
      fields[#fields + 1] = 'p' .. id
      fields[#fields + 1] = 'f' .. id
      fields[#fields + 1] = 't' .. id
      fields[#fields + 1] = 'k' .. id
    end
    many('HDEL', E, fields)
  end
end

-- A lease is named by its token: 16 random bytes, a number, when the lease began, the name of the worker, the prefix of
-- the queue, the id of the message.
local function queue_at(lease)
  return 28 + byte(lease, 27)
end

local function is_of(lease, prefix)
  local at = queue_at(lease)
  return sub(lease, at, at + #prefix - 1) == prefix
end

local function prefix_in(lease)
  local at = queue_at(lease)
  return sub(lease, at, at + 1 + read('>I2', lease, at))
end

local function id_in(lease)
  local at = queue_at(lease)
  local high, low = byte(lease, at, at + 1)
  return sub(lease, at + 2 + 256 * high + low)
end
