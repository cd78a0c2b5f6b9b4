-- Wakes consumers that sleep. A consumer whose claim found nothing is entered in SL with what it takes. Each message
-- that becomes ready wakes one consumer that takes it, and removes it from SL. So no consumer has to poll, and one
-- message does not wake all workers of an idle fleet.
local arrived = {}  -- lane -> how many messages have become ready in it
local earlier = {}  -- queue prefix -> true, if the time at which its next message is due is earlier than before

local MOST_GIVEN = 65536  -- bytes of a payload that is handed over: Redis disconnects subscribers that read much slowly

-- The published message, if it is a single one, ready, and in no paused queue: {lane, member, id, record, size,
-- is_apart}. `is_apart`: it is not in R; it goes there if it is not handed over.
local offer

local function queue_of(lane)
  return sub(lane, 1, 2 + read('>I2', lane))
end

-- Returns the lane at the beginning of a member of R or U. `length` is the length of the prefix of its queue.
local function lane_in(member, length)
  return sub(member, 1, length + 2 + math.max(read('>I2', member, length + 1) - 1, 0))
end

-- Returns whether no consumer that is alive asks for this lane.
local function is_stray(lane, prefix)
  local untils = call('HMGET', W, lane, prefix)
  return not (untils[1] and tonumber(untils[1]) > now) and not (untils[2] and tonumber(untils[2]) > now)
end

-- Returns whether a consumer that sleeps takes from a lane. `entry` is {channel, {{prefix, queue, lanes or false},
-- ...}, {lane or prefix whose limit is reached, ...}}.
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

-- Returns why a consumer is to be woken: true if its next message is due earlier, a lane that has a message for it, or
-- nil.
local function cause_for(entry)
  for _, take in ipairs(entry[2]) do
    if earlier[take[1]] then return true end
  end
  for lane, count in pairs(arrived) do
    if count > 0 and takes(entry, lane, queue_of(lane)) then return lane end
  end
end

-- Returns whether the offer is the only message that has become ready, so that it can be handed over without a claim.
local function is_only_offer()
  local count = 0
  for _, more in pairs(arrived) do count = count + more end
  return offer and count == 1
end

-- Leases the offer to a consumer that sleeps and sends it, so that the consumer does not have to claim it. Returns the
-- entry of the consumer from then on, which holds the lease until the consumer claims again or stops waiting (see
-- part_given.lua), or nil if it was not handed over.
local function hand_over(entry, terms)
  local nonce, lasts, worker = terms[1], terms[2], terms[3]
  if not offer.is_apart and call('ZREM', R, offer.member) == 0 then return end
  local lease = nonce .. pack('>I2I8B', 0, now, #worker) .. worker .. queue_of(offer.lane) .. offer.id
  if call('PUBLISH', entry[1], 'd' .. pack('>I4', #lease) .. lease .. offer.record) == 0 then
    if not offer.is_apart then call('ZADD', R, 0, offer.member) end
    return
  end
  call('ZADD', L, score_of(now + lasts), lease)
  return cmsgpack.pack({entry[1], {}}, lease)
end

-- Wakes one consumer for each message that has become ready. A consumer to whose channel no client listens any more
-- (its process was killed) does not count as woken. Returns whether the offer was handed over.
local function wake_sleepers()
  local sleepers, was_given = call('HGETALL', SL), false
  local is_offered = is_only_offer()
  for i = 1, #sleepers, 2 do
    local entry, terms = cmsgpack.unpack(sleepers[i + 1])
    local cause = cause_for(entry)
    local fits = is_offered and cause and cause ~= true and terms and offer.size <= terms[4]
    local given = fits and hand_over(entry, terms)
    if given then
      call('HSET', SL, sleepers[i], given)
      arrived[cause], was_given = 0, true
    elseif cause then
      call('HDEL', SL, sleepers[i])
      if call('PUBLISH', entry[1], 'r') > 0 and cause ~= true then arrived[cause] = arrived[cause] - 1 end
    end
  end
  return was_given
end

local function wake()
  if (next(arrived) or next(earlier)) and call('EXISTS', SL) == 1 then
    -- needs: wake_sleepers
    wake_sleepers()
  end
end
