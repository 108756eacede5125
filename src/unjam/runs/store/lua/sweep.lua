-- KEYS[1]: order of the index. ARGV: now, again, tag, limit (0: only count), worker_lost, attempts_exhausted (JSON).
-- The decisions of `machine.after_loss`.
local x, limit, settled = P .. '{' .. ARGV[3] .. '}:', tonumber(ARGV[4]), {}
if limit == 0 then
  return {'ok', call('ZCOUNT', x .. 'deadlines', '-inf', NOW) + call('ZCOUNT', x .. 'leases', '-inf', whole(MS))}
end
for _, id in ipairs(call('ZRANGEBYSCORE', x .. 'deadlines', '-inf', NOW, 'LIMIT', 0, limit)) do
  local r = fetch(id)
  if r and not ended(r.status) and past(r) then
    mend(r)
    settle(r, 'expired', '{}')
    table.insert(settled, view(r))
  else
    call('ZREM', x .. 'deadlines', id)
  end
end
if #settled < limit then
  for _, id in ipairs(call('ZRANGEBYSCORE', x .. 'leases', '-inf', whole(MS), 'LIMIT', 0, limit - #settled)) do
    local r = fetch(id)
    if not r or r.status ~= 'running' then
      call('ZREM', x .. 'leases', id)
    else
      mend(r)
      if r.cancel then
        settle(r, 'cancelled', '{}')
      elseif r.shown and not r.check and r.retry ~= 'restart' then
        settle(r, 'failed', '{"error":' .. ARGV[5] .. '}', ARGV[5])
      elseif r.attempt >= r.max then
        settle(r, 'failed', '{"error":' .. ARGV[6] .. '}', ARGV[6])
        call('ZADD', x .. 'dead', whole(order(x)), id)
      else
        leave(r)
        enqueue(r, r.order, 'lost')
      end
      table.insert(settled, view(r))
    end
  end
end
return {'ok', settled}
