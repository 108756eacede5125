-- KEYS[1]: the run. ARGV: now, again, id, after.
if call('EXISTS', KEYS[1]) == 0 then return {'unknown'} end
return {'ok', call('LRANGE', home(ARGV[3]) .. 'inputs:' .. ARGV[3], ARGV[4], -1)}
