-- What is kept of a message: how its record is read, and forgotten.
-- record: flags, attempt, lost, rank, order, offset, size, enqueued, [due], [expires], [unrouted], lane, rest
local FLAG_DUE, FLAG_EXPIRES, FLAG_UNROUTED, FLAG_SILENT, FLAG_RESULT, FLAG_TTL, FLAG_WANTED = 1, 2, 4, 8, 16, 32, 64
local DAY = 86400000000

-- `rest` begins with its ttl and with where its result goes, if the sender gave them; what follows only clients read.
local function result_in(kept, rest, id)
  if bit.band(kept, FLAG_RESULT) == 0 then return id, DAY end
  local ttl, length, at = read('>I8I2', rest, bit.band(kept, FLAG_TTL) ~= 0 and 9 or 1)
  return length > 0 and sub(rest, at, at + length - 1) or id, ttl
end

local function fields_of(record)
  local t = {}
  local flags, at, length
  flags, t.attempt, t.lost, t.rank, t.order, t.offset, t.size, t.enqueued, at = read('>BI4I2I8I6I4I4I8', record)
  if bit.band(flags, FLAG_DUE) ~= 0 then t.due, at = read('>I8', record, at) end
  if bit.band(flags, FLAG_EXPIRES) ~= 0 then t.expires, at = read('>I8', record, at) end
  if bit.band(flags, FLAG_UNROUTED) ~= 0 then t.unrouted, at = read('>I8', record, at) end
  t.kept = bit.band(flags, FLAG_SILENT + FLAG_RESULT + FLAG_TTL + FLAG_WANTED)
  length, at = read('>I2', record, at)
  t.lane = sub(record, at, at + length - 1)
  t.rest = sub(record, at + length)
  return t
end

-- A record that another program has shortened must not keep everything else from being done: it is in no place that is known.
local function parse(record)
  local is_whole, t = pcall(fields_of, record)
  if is_whole then return t end
  return {damaged = true, attempt = 1, lost = 0, rank = 0, order = 0, offset = 0, size = 0, enqueued = now,
    kept = FLAG_SILENT, lane = '\0\0\0\0', rest = ''}
end

-- Forgets a message that is in no place any more.
local function remove(id)
  call('HDEL', M, id)
  call('ZREM', Z, id)
  forget_extras({id})
  note(id)
end
