-- KEYS[1]: the run. ARGV: now, again, id, token.
local r = fetch(ARGV[3])
if not r then return {'unknown'} end
if AGAIN and (r.op == ARGV[4] or r.cancel == ARGV[4]) then return {'ok', 1, view(r)} end
if ended(r.status) or r.cancel then return {'ok', 0, view(r)} end
if r.status == 'queued' then
  mend(r)
  call('HSET', r.run, 'op', ARGV[4])
  settle(r, 'cancelled', '{}')
else
  -- `op` is the owner's while it runs: its claim may still be asked for again.
  call('HSET', r.run, 'cancel', ARGV[4])
  r.cancel = ARGV[4]
end
return {'ok', 1, view(r)}
