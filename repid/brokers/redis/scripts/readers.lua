-- Returns the fields of each consumer that counts as alive.
local found = {}
for _, consumer in ipairs(call('ZRANGEBYSCORE', CA, now, '+inf')) do
  local packed = call('HGET', C, consumer)
  if packed then found[#found + 1] = cmsgpack.unpack(packed) end
end
return found
