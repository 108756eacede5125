-- KEYS[1]: order of the index. ARGV: now, again, tag. What those who are there say, in pieces: HMGET takes so many.
local x, found = P .. '{' .. ARGV[3] .. '}:', {}
local ids = call('ZRANGEBYSCORE', x .. 'present', '(' .. whole(MS), '+inf')
for i = 1, #ids, 1000 do
  for _, said in ipairs(call('HMGET', x .. 'workers', unpack(ids, i, math.min(i + 999, #ids)))) do
    if said then table.insert(found, said) end
  end
end
return {'ok', found}
