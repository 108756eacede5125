-- KEYS[1]: order of the index. ARGV: now, again, tag, pull, what version is `wanted`, number of lanes, lanes, services.
-- By lane: the place of the oldest in the queues that suits, empty for none.
local x, found = P .. '{' .. ARGV[3] .. '}:', {}
local version, known, at = wanted(ARGV, 5)
local lanes = tonumber(ARGV[at])
for lane = at + 1, at + lanes do
  local first
  for i = at + lanes + 1, #ARGV do
    local head, place = front(x .. queue(ARGV[4], ARGV[lane], ARGV[i]), version, known)
    if head and (not first or place < first) then first = place end
  end
  table.insert(found, first and whole(first) or '')
end
return {'ok', found}
