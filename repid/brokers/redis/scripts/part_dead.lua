-- Dead letters. A letter is written by part_records.lua: id, reason, failure, progress, record of the message.
local function id_in_letter(letter)
  local length, at = read('>I2', letter)
  return sub(letter, at, at + length - 1), at + length
end

-- Returns the id, the progress and the record.
local function read_letter(letter)
  local id, at = id_in_letter(letter)
  local length
  length, at = read('>B', letter, at)
  length, at = read('>I4', letter, at + length)
  length, at = read('>I4', letter, at + length)
  return id, sub(letter, at, at + length - 1), sub(letter, at + length)
end

local function forget_dead(prefix, key, id)
  call('ZREM', X, prefix .. key)
  call('ZREM', I, pack('>I2', #id) .. id .. key)
  call('HDEL', Y, key)
  note(id)
end
