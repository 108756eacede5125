-- KEYS[1]: order of the index. ARGV: now, again, tag, seconds, limit.
local x, deleted = P .. '{' .. ARGV[3] .. '}:', 0
local old = call('ZRANGEBYSCORE', x .. 'ended', '-inf', string.format('(%.6f', WALL - tonumber(ARGV[4])), 'LIMIT', 0, ARGV[5])
for _, id in ipairs(old) do
  erase(id, unpack(call('HMGET', home(id) .. 'run:' .. id, 'tenant', 'key')))
  deleted = deleted + 1
end
return {'ok', deleted}
