-- Acknowledges messages whose runs send nothing. `arg` is the list of their results, empty if none is stored; ARGV[2]
-- and the arguments after it are the leases. Returns '1' (accepted) or '0' (the lease is lost) for each, as one text.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local results, given = arg, #ARGV - 1
local scores = call('ZMSCORE', L, unpack(ARGV, 2))
local valid, gone, answers = {}, {}, {}
for i = 1, given do
  answers[i] = scores[i] and '1' or '0'
  if scores[i] then
    local lease = ARGV[i + 1]
    local id = id_in(lease)
    valid[#valid + 1] = lease
    gone[#gone + 1] = id
    if watching then note(id) end
  end
end
if #valid > 0 then
  call('ZREM', L, unpack(valid))
  call('HDEL', M, unpack(gone))
  if call('EXISTS', Z) == 1 then call('ZREM', Z, unpack(gone)) end
  if call('EXISTS', E) == 1 then
    -- needs: forget_extras
    forget_extras(gone)
  end
  if #results > 0 then
    -- needs: store_result, purge
    for i, result in ipairs(results) do
      if result and scores[i] then store_result(result[1], result[2], result[3], result[4], result[5]) end
    end
    purge(2 * #valid)
  end
  if changed[1] then
    -- needs: tell
    tell()
  end
end
return table.concat(answers)
