-- {name, expected next, next at, entry or false}: moves a schedule on, and publishes the entry, if its next time is the
-- expected one. Returns 'fired', 'skipped' or 'lost'.
local value = call('HGET', SC, arg[1])
if not value then return 'lost' end
local next_at, every, flags, fired, skipped, length, at = read('>ddBI8I8I2', value)
if bit.band(flags, 1) ~= 0 or next_at ~= arg[2] then return 'lost' end
local last_id = sub(value, at, at + length - 1)
local rest = sub(value, at + length)
local outcome = 'skipped'
if arg[4] and not (bit.band(flags, 2) ~= 0 and length > 0 and call('HEXISTS', M, last_id) == 1) then
  if publish({arg[4]}, true) == 'a' then
    outcome, last_id = 'fired', (read(ENTRY, arg[4]))
  end
end
if outcome == 'fired' then fired = fired + 1 else skipped = skipped + 1 end
call('HSET', SC, arg[1], pack('>ddBI8I8I2', arg[3], every, flags, fired, skipped, #last_id) .. last_id .. rest)
call('ZADD', SN, arg[3], arg[1])
if every > 0 then call('ZADD', SA, arg[3] - every, arg[1]) end
wake()
tell()
return with_dropped(outcome)
