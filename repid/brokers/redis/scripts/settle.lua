-- {{lease, kind, delay, reason, failure, {unrouted, started, survived}, result or false, outbox}, ...}: carries out one
-- verdict after another, by the rules of repid/delivery/shelf.py. Returns for each: -1 if it is refused, the name of
-- the queue that has no room for the outbox, or how many messages of the outbox were left out.
call('HDEL', SL, '')  -- takes no memory: see part_start.lua
local answers = {}

local function carry_out(t, id, one)
  local kind, delay, reason, failure, marks = one[2], one[3], one[4], one[5], one[6]
  if marks[3] then t.lost = 0 end
  if (kind == 'retry' or kind == 'release') and call('HEXISTS', E, 'k' .. id) == 1 then kind = 'cancel' end
  if kind == 'ack' then
    finish(t, id, '', '')
  elseif kind == 'cancel' then
    finish(t, id, '', '', CANCELLED)
  elseif kind == 'dead' then
    finish(t, id, reason, failure)
  elseif kind == 'retry' then
    t.attempt = math.min(t.attempt + 1, 4294967295)
    t.rank = now + delay + t.offset
    t.expires = nil
    t.due = delay > 0 and now + delay or nil
    t.order, order = order, order + 1
    if failure ~= '' then call('HSET', E, 'f' .. id, failure) else call('HDEL', E, 'f' .. id) end
    -- needs: put_back
    put_back(t, id)
    bounds = {}  -- of its queue more waits than was counted
  else
    if marks[1] and not t.unrouted then t.unrouted = now end
    if marks[2] then t.expires = nil end
    t.due = delay > 0 and now + delay or nil
    -- needs: put_back
    put_back(t, id)
    bounds = {}  -- of its queue more waits than was counted
  end
end

for i, one in ipairs(arg) do
  local full = #one[8] > 0 and is_bounded and call('ZSCORE', L, one[1]) and refuse_outbox(one[8])
  local id = not full and call('ZREM', L, one[1]) == 1 and id_in(one[1])
  local record = id and call('HGET', M, id)
  if full then
    answers[i] = full
  elseif not record then
    answers[i] = -1
  else
    local t = parse(record)
    if t.lost < SUSPECT_FROM or one[6][3] then call('HDEL', E, 't' .. id) end
    if t.damaged and one[2] ~= 'ack' and one[2] ~= 'cancel' then
      -- needs: bury_damaged
      bury_damaged(one[1], id, record, '')
    else
      carry_out(t, id, one)
    end
    note(id)
    local result = one[7]
    if result then
      store_result(result[1], result[2], result[3], result[4], result[5])
      purge(2)
    end
    local left_out = 0
    if #one[8] > 0 then
      -- needs: publish
      for letter in string.gmatch(publish(one[8], true), '.') do
        if letter ~= 'a' then left_out = left_out + 1 end
      end
    end
    answers[i] = left_out
  end
end
wake()
tell()
return with_dropped(answers)
