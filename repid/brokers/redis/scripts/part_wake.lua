-- Waking those who sleep. A consumer whose claim was empty is in SL with what it would take; each message that becomes
-- ready wakes one of those that would take it, and strikes it off. So nobody polls, and a fleet that idles is not woken
-- as a whole for one message.
local arrived = {}  -- lane -> how many became ready in it
local earlier = {}  -- queue prefix -> true, where the next due time is earlier now
local MOST_GIVEN = 65536  -- bytes of a payload: Redis cuts those off who are slow to hear much
local offer  -- the only message that was published last, if it is ready: {lane, queue, member of R, id, record, size}

local function queue_of(lane)
  return sub(lane, 1, 2 + read('>I2', lane))
end

-- The lane at the beginning of a member of R or U; `length` is that of its queue prefix.
local function lane_in(member, length)
  return sub(member, 1, length + 2 + math.max(read('>I2', member, length + 1) - 1, 0))
end

-- Whether no consumer that lives asked for this lane.
local function is_stray(lane, prefix)
  local untils = call('HMGET', W, lane, prefix)
  return not (untils[1] and tonumber(untils[1]) > now) and not (untils[2] and tonumber(untils[2]) > now)
end

-- Whether a sleeper takes from a lane. `entry` is {channel, {{prefix, queue, lanes or false}, ...}, {what is at its limit}}.
local function takes(entry, lane, prefix)
  for _, name in ipairs(entry[3] or {}) do
    if name == lane or name == prefix then return false end
  end
  for _, take in ipairs(entry[2]) do
    if take[1] == prefix then
      if not take[3] then return true end
      for _, one in ipairs(take[3]) do
        if one == lane then return true end
      end
      return is_stray(lane, prefix)
    end
  end
  return false
end

-- What a sleeper would be woken for: true (the next due time is earlier), a lane, or nil.
local function cause_for(entry)
  for _, take in ipairs(entry[2]) do
    if earlier[take[1]] then return true end
  end
  for lane, count in pairs(arrived) do
    if count > 0 and takes(entry, lane, queue_of(lane)) then return lane end
  end
end

-- Whether the message that is offered is all that became ready, so that it may be handed over without a claim.
local function is_only_offer()
  local count = 0
  for _, more in pairs(arrived) do count = count + more end
  return offer and count == 1 and call('HGET', Q, offer.queue) == ''
end

-- Leases what is offered to a sleeper and sends it, so that it need not ask; returns what it is entered with then, or nil.
-- Until it claims again or stops waiting it is known what it was given: see part_given.lua.
local function hand_over(entry, terms)
  local nonce, lasts, worker = terms[1], terms[2], terms[3]
  if call('ZREM', R, offer.member) == 0 then return end
  local lease = nonce .. pack('>I2I8B', 0, now, #worker) .. worker .. queue_of(offer.lane) .. offer.id
  if call('PUBLISH', entry[1], 'd' .. pack('>I4', #lease) .. lease .. offer.record) == 0 then
    call('ZADD', R, 0, offer.member)
    return
  end
  call('ZADD', L, score_of(now + lasts), lease)
  return cmsgpack.pack({entry[1], {}}, lease)
end

-- One that nobody hears any more (its process was killed) does not count as woken.
local function wake()
  if (next(arrived) or next(earlier)) and call('EXISTS', SL) == 1 then
    local sleepers = call('HGETALL', SL)
    local is_offered = is_only_offer()
    for i = 1, #sleepers, 2 do
      local entry, terms = cmsgpack.unpack(sleepers[i + 1])
      local cause = cause_for(entry)
      local fits = is_offered and cause and cause ~= true and terms and offer.size <= terms[4]
      local given = fits and hand_over(entry, terms)
      if given then
        call('HSET', SL, sleepers[i], given)
        arrived[cause] = 0
      elseif cause then
        call('HDEL', SL, sleepers[i])
        if call('PUBLISH', entry[1], 'r') > 0 and cause ~= true then arrived[cause] = arrived[cause] - 1 end
      end
    end
  end
end
