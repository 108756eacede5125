-- KEYS[1]: order of the index. ARGV: now, again, tag, service, limit. Pairs of place and run. In pieces: no more is read
-- than may be answered.
local x, limit, service, found = P .. '{' .. ARGV[3] .. '}:', tonumber(ARGV[5]), ARGV[4], {}
local from, piece = 0, 200
while #found < limit do
  local entries = call('ZRANGE', x .. 'dead', from, from + piece - 1, 'REV', 'WITHSCORES')
  for i = 1, #entries, 2 do
    if #found >= limit then break end
    local id = entries[i]
    if service == '' or call('HGET', home(id) .. 'run:' .. id, 'service') == service then
      local r = fetch(id)
      if r then table.insert(found, {entries[i + 1], view(r)}) end
    end
  end
  if #entries < 2 * piece then break end
  from = from + piece
end
return {'ok', found}
