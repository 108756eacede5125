-- KEYS[1]: order of the index. ARGV: now, again, tag, service, limit. Pairs of place and run.
local x, limit, found = P .. '{' .. ARGV[3] .. '}:', tonumber(ARGV[5]), {}
local entries = call('ZRANGE', x .. 'dead', 0, -1, 'REV', 'WITHSCORES')
for i = 1, #entries, 2 do
  if #found >= limit then break end
  local id = entries[i]
  local r = fetch(id)
  if r and (ARGV[4] == '' or ARGV[4] == r.service) then
    table.insert(found, {entries[i + 1], view(r)})
  end
end
return {'ok', found}
