-- KEYS[1]: schema. ARGV: now, again, tag of the index, schema, replication id, id of the history it was promoted from.
-- Answers with the schema found. A server promoted since we last came may lack what its master had acknowledged.
local x = P .. '{' .. ARGV[3] .. '}:'
local found = call('GET', x .. 'schema')
if found and found ~= ARGV[4] then return {'ok', found, 0} end
-- A user that may not all of it shall be told now, and not half way through a change.
local probe = x .. 'probe'
call('DEL', probe)
call('HSET', probe, 'a', '1')
call('HINCRBY', probe, 'a', 1)
call('HMGET', probe, 'a')
call('HGET', probe, 'a')
call('HGETALL', probe)
call('HLEN', probe)
call('HDEL', probe, 'a')
call('ZADD', probe, 1, 'a')
call('ZCOUNT', probe, 0, 1)
call('ZRANGE', probe, 0, 0, 'WITHSCORES')
call('ZRANGEBYSCORE', probe, 0, 1)
call('ZREVRANGEBYLEX', probe, '+', '-')
call('ZREM', probe, 'a')
call('RPUSH', probe, 'a')
call('LLEN', probe)
call('LRANGE', probe, 0, 0)
call('UNLINK', probe)
call('XADD', probe, '0-1', 'a', 'a')
call('XRANGE', probe, '-', '+', 'COUNT', 1)
call('SET', probe, 'a', 'PX', 1000)
call('EXISTS', probe)
call(PUBLISH, probe, '')
if not found then call('SET', x .. 'schema', ARGV[4]) end
local lineage, promoted = call('GET', x .. 'lineage'), 0
if ARGV[5] ~= '' and lineage ~= ARGV[5] then
  if lineage and ARGV[6] ~= '' then
    promoted = 1
    call('INCR', x .. 'gen')
  end
  call('SET', x .. 'lineage', ARGV[5])
end
return {'ok', ARGV[4], promoted}
