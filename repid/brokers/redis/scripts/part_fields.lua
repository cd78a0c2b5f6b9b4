-- The record of a message: how it is read and removed.
-- Its fields: flags, attempt, lost, rank, order, offset, size, enqueued, [due], [expires], [unrouted], lane, rest
local FLAG_DUE, FLAG_EXPIRES, FLAG_UNROUTED, FLAG_SILENT, FLAG_RESULT, FLAG_TTL, FLAG_WANTED = 1, 2, 4, 8, 16, 32, 64

local DAY = 86400000000

-- `rest` begins with the ttl of the message, and with the id and ttl of its result, if the sender gave them. Only
-- clients read what comes after that.
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

-- Reads a record. A record that another program has damaged must not stop the script, so it is read as that of a
-- message which is found in no place.
local function parse(record)
  local is_whole, t = pcall(fields_of, record)
  if is_whole then return t end
  return {damaged = true, attempt = 1, lost = 0, rank = 0, order = 0, offset = 0, size = 0, enqueued = now,
    kept = FLAG_SILENT, lane = '\0\0\0\0', rest = ''}
end

-- Removes everything that is kept of a message which was taken out of its place.
local function remove(id)
  call('HDEL', M, id)
  call('ZREM', Z, id)
  forget_extras({id})
  note(id)
end
