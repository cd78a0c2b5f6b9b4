-- {id, ...}: returns 1 for each message that is to be cancelled, or 0.
local answers = {}
for i, id in ipairs(arg) do
  answers[i] = call('HEXISTS', E, 'k' .. id)
end
return answers
