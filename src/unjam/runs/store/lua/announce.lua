-- KEYS[1]: order of the index. ARGV: now, again, tag, worker, ttl in ms (0: gone), what it says, most workers.
local x = P .. '{' .. ARGV[3] .. '}:'
local function forget(ids)
  if not ids[1] then return end
  call('ZREM', x .. 'present', unpack(ids))
  call('HDEL', x .. 'workers', unpack(ids))
end
if ARGV[5] == '0' then
  forget({ARGV[4]})
else
  call('ZADD', x .. 'present', whole(MS + tonumber(ARGV[5])), ARGV[4])
  call('HSET', x .. 'workers', ARGV[4], ARGV[6])
end
forget(call('ZRANGEBYSCORE', x .. 'present', '-inf', whole(MS), 'LIMIT', 0, 1000))
if call('HLEN', x .. 'workers') > tonumber(ARGV[7]) then forget(call('ZRANGE', x .. 'present', 0, 0)) end
return {'ok'}
