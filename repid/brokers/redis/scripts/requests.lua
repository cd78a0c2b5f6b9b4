-- Which of these messages are to be cancelled.
local answers = {}
for i, id in ipairs(arg) do
  answers[i] = call('HEXISTS', E, 'k' .. id)
end
return answers
