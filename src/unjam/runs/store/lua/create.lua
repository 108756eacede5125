-- KEYS[1]: the run. ARGV: now, again, id, key, digest, max queued, the same of the tenant,
-- input, created data, deadline, field, value ...
-- Answers with 2 and the time for a new run: the caller knows the rest; else with 1 (by this call, before) or 0, and the run.
local id, key, digest = ARGV[3], ARGV[4], ARGV[5]
local r = AGAIN and fetch(id)
if r then return {'ok', 1, view(r)} end
local h, x = home(id), index(id)
if key ~= '' then
  local used = call('GET', h .. 'key:' .. key)
  -- run (31), wall time of its use (17), digest
  if used and WALL - tonumber(string.sub(used, 32, 48)) <= @KEY_KEPT@ then
    local known = fetch(string.sub(used, 1, 31))
    if known then
      if string.sub(used, 49) ~= digest then return {'reused'} end
      return {'ok', 0, view(known)}
    end
  end
end
local fields = {}
for i = 11, #ARGV, 2 do fields[ARGV[i]] = ARGV[i + 1] end
local service = fields.service
if ARGV[6] ~= '' and tonumber(call('HGET', x .. 'queued', service) or 0) >= tonumber(ARGV[6]) then return {'full'} end
if ARGV[7] ~= '' and tonumber(call('HGET', x .. 'queued_of', whose(service, fields.tenant)) or 0) >= tonumber(ARGV[7])
then return {'tenant full'} end
local place = order(x)
call('HSET', h .. 'run:' .. id, 'created', NOW, 'order', whole(place), 'why', 'first', 'status', 'queued', 'attempt', 0,
  'seq', 1, 'gen', call('GET', x .. 'gen') or '0', unpack(ARGV, 11))
call('SET', h .. 'input:' .. id, ARGV[8])
if key ~= '' then
  call('HSET', h .. 'run:' .. id, 'key', key)
  call('SET', h .. 'key:' .. key, id .. string.format('%017.6f', WALL) .. digest, 'PX', @KEY_KEPT@ * 1000)
end
r = {
  id = id, home = h, index = x, run = h .. 'run:' .. id, seq = 0, attempt = 0, service = service, lane = fields.lane,
  pull = fields.pull, tenant = fields.tenant,
}
write(r, 'run.created', ARGV[9])
if ARGV[10] ~= '' then
  call('HSET', r.run, 'deadline', ARGV[10])
  call('ZADD', x .. 'deadlines', ARGV[10], id)
end
call('ZADD', x .. 'runs', 0, aged(id))
call('ZADD', x .. 'tenant:' .. fields.tenant, 0, aged(id))
wait(r, place)
return {'ok', 2, NOW}
