-- KEYS[1]: the run. ARGV: now, again, id.
if call('EXISTS', KEYS[1]) == 0 then return {'unknown'} end
return {'ok', call('GET', home(ARGV[3]) .. 'result:' .. ARGV[3])}
