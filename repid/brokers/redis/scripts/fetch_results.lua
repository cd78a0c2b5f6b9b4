-- {result id, ...}: returns the result under each id, or '' if there is none.
local answers = {}
for i, id in ipairs(arg) do
  local result = call('HGET', V, id)
  answers[i] = result and read('>I8', result, 9) > now and result or ''
end
return answers
