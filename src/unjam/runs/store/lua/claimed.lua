-- KEYS[1]: order of the index. ARGV: now, again, tag, token. The run and fence of that claim, if it came to one.
local id = call('GET', P .. '{' .. ARGV[3] .. '}:claim:' .. ARGV[4])
local r = id and fetch(id)
if r and r.op == ARGV[4] and r.status == 'running' then return {'ok', id, r.fence} end
return {'none'}
