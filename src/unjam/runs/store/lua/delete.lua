-- KEYS[1]: the run. ARGV: now, again, id.
local id = ARGV[3]
local v = call('HMGET', KEYS[1], 'status', 'tenant', 'key')
if not v[1] then return {AGAIN and 'ok' or 'unknown'} end
if not ended(v[1]) then return {'live', v[1]} end
erase(id, v[2], v[3])
return {'ok'}
