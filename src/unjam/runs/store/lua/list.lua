-- KEYS[1]: order of the index. ARGV: now, again, tag, 1 for one tenant, tenant, service, status, from (a member, or
-- empty), limit. Answers with what it found and where to go on, empty at the end.
local x = P .. '{' .. ARGV[3] .. '}:'
local name = ARGV[4] == '1' and x .. 'tenant:' .. ARGV[5] or x .. 'runs'
local top = ARGV[8] == '' and '+' or '(' .. ARGV[8]
local found, limit = {}, tonumber(ARGV[9])
local seen = call('ZREVRANGEBYLEX', name, top, '-', 'LIMIT', 0, 200)
for _, member in ipairs(seen) do
  local id = unaged(member)
  local r = fetch(id)
  if r and (ARGV[6] == '' or ARGV[6] == r.service) and (ARGV[7] == '' or ARGV[7] == r.status) then
    table.insert(found, view(r))
    if #found >= limit then return {'ok', found, member} end
  end
end
return {'ok', found, #seen < 200 and '' or seen[#seen]}
