-- KEYS[1]: order of the index. ARGV: now, again, tag, token, worker, pull, lease in ms, what version is `wanted`, number
-- of lanes, lanes, services.
-- The token is kept for as long as the same call may come again. Answers with `again` when it has expired so many
-- overdue runs that others shall have their turn.
local overdue = 0
local x = P .. '{' .. ARGV[3] .. '}:'
local function answer(r, pinned)
  return {'ok', view(r), call('GET', r.home .. 'input:' .. r.id), call('GET', r.home .. 'check:' .. r.id), pinned}
end
if AGAIN then
  local id = call('GET', x .. 'claim:' .. ARGV[4])
  local r = id and fetch(id)
  if r and r.op == ARGV[4] and r.status == 'running' then return answer(r, 0) end
end
local pull = ARGV[6]
local version, known, at = wanted(ARGV, 8)
local lanes = tonumber(ARGV[at])
for lane = at + 1, at + lanes do
  while true do
    local id, first, from
    for i = at + lanes + 1, #ARGV do
      local name = x .. queue(pull, ARGV[lane], ARGV[i])
      local head, place = front(name, version, known)
      if head and (not first or place < first) then
        id, first, from = head, place, name
      end
    end
    if not id then break end
    local r = fetch(id)
    if not r or r.status ~= 'queued' then
      call('ZREM', from, id)
    elseif past(r) then
      mend(r)
      settle(r, 'expired', '{}')
      overdue = overdue + 1
      if overdue >= 100 then return {'again'} end
    else
      mend(r)
      leave(r)
      r.attempt, r.fence = r.attempt + 1, r.fence + 1
      write(r, 'run.attempt', string.format('{"n":%d,"from_seq":%s,"reason":"%s"}', r.attempt,
        whole(r.mark > 0 and r.mark or 1), r.why))
      r.status, r.worker, r.started = 'running', ARGV[5], r.started or NOW
      call('HSET', r.run, 'status', 'running', 'attempt', r.attempt, 'fence', r.fence, 'seq', r.seq, 'worker', ARGV[5],
        'started', r.started, 'batch', 0, 'length', ARGV[7], 'op', ARGV[4])
      local pinned = version and r.version == version
      if version and not pinned then
        call('HSET', r.run, 'version', version)
        r.version = version
      end
      if r.released then call('HDEL', r.run, 'released') end
      call('ZADD', x .. 'leases', whole(MS + tonumber(ARGV[7])), id)
      call('HINCRBY', x .. 'running', r.service, 1)
      call('SET', x .. 'claim:' .. ARGV[4], id, 'PX', 60000)
      tell(r)
      return answer(r, pinned and 1 or 0)
    end
  end
end
return {'none'}
