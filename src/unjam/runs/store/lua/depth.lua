-- KEYS[1]: order of the index. ARGV: now, again, tag.
local x = P .. '{' .. ARGV[3] .. '}:'
return {'ok', call('HGETALL', x .. 'queued'), call('HGETALL', x .. 'running')}
