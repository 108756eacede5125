-- KEYS[1]: the run. ARGV: now, again, id, fence, token, 1 with a checkpoint, the checkpoint.
local r = fetch(ARGV[3])
if not r then return {'unknown'} end
local fence = tonumber(ARGV[4])
if AGAIN and r.op == ARGV[5] then return {'ok', 1, view(r)} end
if r.status == 'queued' and r.released and tonumber(r.released) == fence then return {'ok', 0, view(r)} end
if r.status ~= 'running' or r.fence ~= fence then return {'fenced', r.status, r.fence} end
if ARGV[6] == '1' then checkpoint(r, ARGV[7]) end
call('HSET', r.run, 'op', ARGV[5])
if r.cancel then
  mend(r, nil, true)
  settle(r, 'cancelled', '{}')
else
  leave(r)
  r.attempt = r.attempt - 1
  call('HSET', r.run, 'released', fence)
  enqueue(r, -order(r.index), 'handed_back')
end
return {'ok', 1, view(r)}
