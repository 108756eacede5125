-- KEYS[1]: the run. ARGV: now, again, id.
local r = fetch(ARGV[3])
return r and {'ok', view(r)} or {'unknown'}
