-- {{id, state, payload, failure, ttl}, ...}: stores results, in place of those with the same ids.
for _, result in ipairs(arg) do
  store_result(result[1], result[2], result[3], result[4], result[5])
end
purge(2 * #arg)
tell()
return 1
