-- KEYS[1]: order of the index. ARGV: now, again, tag, pull, number of lanes, lanes, services. By lane: the place of the
-- oldest in the queues, empty for none.
local x, lanes, found = P .. '{' .. ARGV[3] .. '}:', tonumber(ARGV[5]), {}
for lane = 6, 5 + lanes do
  local first
  for i = 6 + lanes, #ARGV do
    local head = call('ZRANGE', x .. queue(ARGV[4], ARGV[lane], ARGV[i]), 0, 0, 'WITHSCORES')
    if head[1] and (not first or tonumber(head[2]) < first) then first = tonumber(head[2]) end
  end
  table.insert(found, first and whole(first) or '')
end
return {'ok', found}
