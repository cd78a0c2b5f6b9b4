-- {entries, rest}: stores dead letters. `entries` are messages as publish.lua takes them; `rest` has {attempt, lost,
-- enqueued, died, reason, failure} for each. Returns the first queue that is not declared, or ''. A letter that is
-- already stored under the same id and moment stays as it is.
local entries, rest = arg[1], arg[2]
for _, entry in ipairs(entries) do
  local _, queue = read(ENTRY, entry)
  if call('HEXISTS', Q, queue) == 0 then return queue end
end
for i, entry in ipairs(entries) do
  local id, _, lane, size, offset, _, _, flags, kept_rest = read(ENTRY, entry)
  local attempt, lost, enqueued, died, reason, failure = unpack(rest[i])
  local head = pack('>I2', #id) .. id
  local key = died
  local kept = call('HGET', Y, pack('>I8', key))
  while kept and sub(kept, 1, #head) ~= head do
    key = key + 1
    kept = call('HGET', Y, pack('>I8', key))
  end
  if not kept then
    local record = render({kept = flags, attempt = attempt, lost = lost, rank = enqueued + offset, order = 0,
      offset = offset, size = size, enqueued = enqueued, lane = lane, rest = kept_rest})
    keep_letter(key, queue_of(lane), id, reason, failure, '', record)
    note(id)
  end
end
tell()
return ''
