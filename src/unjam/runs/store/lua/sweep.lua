-- KEYS[1]: order of the index. ARGV: now, again, tag, limit (0: only count), worker_lost, attempts_exhausted (JSON),
-- grace in ms. The decisions of `machine.after_loss`.
local x, limit, settled = P .. '{' .. ARGV[3] .. '}:', tonumber(ARGV[4]), {}
-- While nobody swept, nobody could give a sign of life either, or the clock was put forward: no lease ends by that.
-- For the length of one the owners are waited for. Not again, though, before sweeps have come in short order, or one
-- was done after the wait: who sweeps seldom sweeps all the same.
local swept, grace = x .. 'swept', tonumber(ARGV[7])
local seen = call('HMGET', swept, 'at', 'calm', 'steady')
local calm, gap = tonumber(seen[2]), seen[1] and MS - tonumber(seen[1])
if not gap or gap < 0 or gap >= @STAMP@ then
  call('HSET', swept, 'at', whole(MS))
  if gap and gap > math.max(@HOLE@, grace / 6) then
    if not calm or seen[3] == '1' then
      calm = MS + grace
      call('HSET', swept, 'calm', whole(calm), 'steady', '0')
    end
  elseif calm and seen[3] ~= '1' then
    call('HSET', swept, 'steady', '1')
  end
end
local waits = calm and MS < calm and calm - MS <= grace
if limit == 0 then
  local due = call('ZCOUNT', x .. 'deadlines', '-inf', NOW)
  return {'ok', waits and due or due + call('ZCOUNT', x .. 'leases', '-inf', whole(MS))}
end
if calm and not waits then call('HDEL', swept, 'calm', 'steady') end
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
if #settled < limit and not waits then
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
