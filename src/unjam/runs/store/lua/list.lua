-- KEYS[1]: order of the index. ARGV: now, again, tag, 1 for one tenant, tenant, service, status, from (a member, or
-- empty), limit. Answers with what it found and where to go on, empty at the end.
local x = P .. '{' .. ARGV[3] .. '}:'
local name = ARGV[4] == '1' and x .. 'tenant:' .. ARGV[5] or x .. 'runs'
local top = ARGV[8] == '' and '+' or '(' .. ARGV[8]
local found, limit, service, status = {}, tonumber(ARGV[9]), ARGV[6], ARGV[7]
-- What doesn't fit costs two fields of it, so that more may be looked at before others get their turn.
local some = (service ~= '' or status ~= '') and 500 or 200
local seen = call('ZREVRANGEBYLEX', name, top, '-', 'LIMIT', 0, some)
for _, member in ipairs(seen) do
  local id = unaged(member)
  local fits = true
  if some == 500 then
    local v = call('HMGET', home(id) .. 'run:' .. id, 'service', 'status')
    fits = (service == '' or service == v[1]) and (status == '' or status == v[2])
  end
  local r = fits and fetch(id)
  if r then
    table.insert(found, view(r))
    if #found >= limit then return {'ok', found, member} end
  end
end
return {'ok', found, #seen < some and '' or seen[#seen]}
