-- {ttl, limit}: removes at most `limit` dead letters that are older than `ttl`. Returns how many. The key of a dead
-- letter is the moment at which it died.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local removed = 0
for _, queue in ipairs(call('HKEYS', Q)) do
  local prefix = pack('>I2', #queue) .. queue
  local last = '(' .. prefix .. pack('>I8', math.max(now - arg[1], 0))
  for _, member in ipairs(call('ZRANGEBYLEX', X, '[' .. prefix, last, 'LIMIT', 0, arg[2] - removed)) do
    local key = sub(member, #prefix + 1)
    local letter = call('HGET', Y, key)
    if letter then
      forget_dead(prefix, key, (id_in_letter(letter)))
    else
      call('ZREM', X, member)
    end
    removed = removed + 1
  end
  if removed >= arg[2] then break end
end
tell()
return removed
