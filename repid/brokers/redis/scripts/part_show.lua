-- Returns what is shown of a live message: {category, key, id, due or -1, record, failure, lease}
local function show(category, key, id, due, record, lease)
  return {category, key, id, due, record, call('HGET', E, 'f' .. id) or '', lease or ''}
end

-- Returns what is shown of a dead letter: {'dead', key, letter}
local function show_dead(bytes)
  return {'dead', bytes, call('HGET', Y, bytes) or ''}
end
