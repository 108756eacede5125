-- KEYS[1]: the run. ARGV: now, again, id, token.
local r = fetch(ARGV[3])
if not r then return {'unknown'} end
if AGAIN and r.op == ARGV[4] then return {'ok', 1, view(r)} end
if r.status ~= 'failed' and r.status ~= 'expired' then return {'ok', 0, view(r)} end
mend(r)
call('ZREM', r.index .. 'ended', r.id)
call('ZREM', r.index .. 'dead', r.id)
call('UNLINK', r.home .. 'result:' .. r.id)
call('HDEL', r.run, 'ended', 'error', 'cancel', 'settled', 'released')
r.ended, r.error, r.cancel = false, false, false
if past(r) then
  call('HDEL', r.run, 'deadline')
  r.deadline = false
elseif r.deadline then
  call('ZADD', r.index .. 'deadlines', r.deadline, r.id)
end
call('HSET', r.run, 'op', ARGV[4])
write(r, 'run.requeued', '{}')
tell(r)
r.attempt = 0
enqueue(r, r.order, 'requeued')
return {'ok', 1, view(r)}
