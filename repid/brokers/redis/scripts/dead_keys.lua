-- {queue, after or false, limit}: returns keys of dead letters, the oldest first, or 'q' if the queue is not declared.
if call('HEXISTS', Q, arg[1]) == 0 then return 'q' end
local prefix = pack('>I2', #arg[1]) .. arg[1]
local answers = {}
local from = arg[2] and '(' .. prefix .. arg[2] or '[' .. prefix
for i, member in ipairs(call('ZRANGEBYLEX', X, from, '(' .. prefix .. '\255', 'LIMIT', 0, arg[3])) do
  answers[i] = sub(member, #prefix + 1)
end
return answers
