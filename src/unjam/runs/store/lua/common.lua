-- What all functions stand on. Each gets ARGV[1]: wall time in seconds, empty: this server's; ARGV[2]: 1 when the same
-- call may have been carried out before. Keys are made from the id: all of a run share the hash tag of its partition.
-- Indexes (queues, leases ...) share it too in a cluster; on one server they are one, which keeps their order exact.
local P, PUBLISH, ONE = '@PREFIX@', '@PUBLISH@', @ONE@
local SKIP = 1000
-- There is none while the library is loaded.
local call
-- Of the call that runs: this server's time in microseconds and milliseconds, wall time as text and number.
local US, MS, NOW, WALL, AGAIN

local function begin(ARGV)
  call = redis.call
  local time = call('TIME')
  US = time[1] * 1000000 + time[2]
  MS = math.floor(US / 1000)
  NOW = ARGV[1] ~= '' and ARGV[1] or string.format('%s.%06d', time[1], tonumber(time[2]))
  WALL = tonumber(NOW)
  AGAIN = ARGV[2] == '1'
end

-- What a caller gets of a run, in this order. The hash has more, which is the store's own.
local RECORD = {
  'service', 'tenant', 'status', 'lane', 'pull', 'version', 'retry', 'max', 'attempt', 'fence', 'seq', 'created',
  'started', 'ended', 'deadline', 'worker', 'cancel', 'check', 'error', 'metadata',
}
local NUMBERS = {'max', 'attempt', 'fence', 'seq', 'order', 'batch', 'length', 'mark'}

local function whole(n) return string.format('%.0f', n) end
local function home(id) return P .. '{p' .. string.sub(id, 5, 6) .. '}:' end
local function index(id) return ONE and P .. '{all}:' or home(id) end
-- Sorts by age over all partitions, as `model.age`.
local function aged(id) return string.sub(id, 7) .. string.sub(id, 5, 6) end
local function unaged(member) return 'run_' .. string.sub(member, -2) .. string.sub(member, 1, -3) end
local function queue(pull, lane, service) return 'queue:' .. pull .. ':' .. lane .. ':' .. service end

-- The run, nil for what it hasn't got; or nil: there is none. All at once: a small hash is searched from its start for
-- each field that is asked for.
local function fetch(id)
  local r = {}
  local h = home(id)
  local values = call('HGETALL', h .. 'run:' .. id)
  if not values[1] then return nil end
  for i = 1, #values, 2 do r[values[i]] = values[i + 1] end
  r.id, r.home, r.index, r.run = id, h, index(id), h .. 'run:' .. id
  for i = 1, #NUMBERS do r[NUMBERS[i]] = tonumber(r[NUMBERS[i]] or 0) end
  return r
end

local function view(r)
  local values = {r.id}
  for i = 1, #RECORD do values[i + 1] = r[RECORD[i]] or false end
  return values
end

-- The next number of the order of creation. In a cluster it must compare with other servers': microseconds, and never
-- one twice, whatever the clock does.
local function order(x)
  if ONE then return call('INCR', x .. 'order') end
  local n = math.max(US, tonumber(call('GET', x .. 'order') or 0) + 1)
  call('SET', x .. 'order', whole(n))
  return n
end

local function whose(service, tenant) return service .. '\0' .. tenant end

local function count(x, what, service, by)
  if call('HINCRBY', x .. what, service, by) <= 0 then call('HDEL', x .. what, service) end
end

local function write(r, type, data)
  call('XADD', r.home .. 'log:' .. r.id, r.seq .. '-1', 't', type, 'd', data, 'a', NOW)
  r.seq = r.seq + 1
end

local function tell(r) call(PUBLISH, r.home .. 'log:' .. r.id, r.seq) end

-- After a failover: what the promoted server had not yet received is lost. Its numbers are not given again: the log
-- goes on after them with an event that tells of the gap. `known`: the next seq as the owner knows it, who alone
-- writes while it owns the run; nobody else can know, and leaves room. Fences go on after the lost ones as well, unless it's the owner that writes.
local function mend(r, known, owner)
  local gen = call('GET', r.index .. 'gen') or '0'
  local to = r.seq
  if known then
    to = math.max(to, known)
  elseif (r.gen or '0') ~= gen then
    to = to + SKIP
    if not owner then r.fence = r.fence + SKIP end
  end
  if (r.gen or '0') ~= gen then call('HSET', r.run, 'gen', gen) end
  if to > r.seq then
    local from = r.seq
    r.seq = to
    write(r, 'run.gap', string.format('{"from":%s,"to":%s}', whole(from), whole(to - 1)))
    call('HSET', r.run, 'seq', r.seq, 'fence', r.fence)
    return true
  end
end

local function wait(r, place)
  call('ZADD', r.index .. queue(r.pull, r.lane, r.service), whole(place), r.id)
  call('HINCRBY', r.index .. 'queued', r.service, 1)
  call('HINCRBY', r.index .. 'queued_of', whose(r.service, r.tenant), 1)
  call(PUBLISH, r.index .. 'ready', r.pull .. '\n' .. r.lane .. '\n' .. whole(place) .. '\n' .. r.service)
end

local function enqueue(r, place, why)
  call('HSET', r.run, 'status', 'queued', 'attempt', r.attempt, 'seq', r.seq, 'why', why)
  if r.worker then call('HDEL', r.run, 'worker') end
  r.status, r.worker = 'queued', false
  wait(r, place)
end

-- ARGV from `at` on: how many versions are known, -1 for a caller that has none, -2 for one that wants only what is
-- pinned to its own; its version; those known, false for that one. And where to go on.
local function wanted(ARGV, at)
  local n = tonumber(ARGV[at])
  if n == -1 then return nil, nil, at + 1 end
  if n == -2 then return ARGV[at + 1], false, at + 2 end
  local known = {}
  for i = at + 2, at + 1 + n do known[ARGV[i]] = true end
  return ARGV[at + 1], known, at + 2 + n
end

-- `model.suits`
local function suits(id, version, known)
  local pin = call('HGET', home(id) .. 'run:' .. id, 'version')
  return pin == version or (known and (not pin or not known[pin]))
end

-- The first of a queue that suits, and its place.
local function front(name, version, known)
  local head = call('ZRANGE', name, 0, 0, 'WITHSCORES')
  if not head[1] then return nil end
  if not version or suits(head[1], version, known) then return head[1], tonumber(head[2]) end
  local more = call('ZRANGE', name, 1, @LOOKED@ - 1, 'WITHSCORES')
  for i = 1, #more, 2 do
    if suits(more[i], version, known) then return more[i], tonumber(more[i + 1]) end
  end
end

-- Out of the queue, or off its worker.
local function leave(r)
  if r.status == 'queued' then
    call('ZREM', r.index .. queue(r.pull, r.lane, r.service), r.id)
    count(r.index, 'queued', r.service, -1)
    count(r.index, 'queued_of', whose(r.service, r.tenant), -1)
  elseif r.status == 'running' then
    call('ZREM', r.index .. 'leases', r.id)
    count(r.index, 'running', r.service, -1)
  end
end

local function settle(r, status, data, error, ...)
  leave(r)
  write(r, 'run.' .. status, data)
  call('HSET', r.run, 'status', status, 'ended', NOW, 'seq', r.seq, ...)
  if error then call('HSET', r.run, 'error', error) end
  r.status, r.ended, r.error = status, NOW, error or false
  call('ZADD', r.index .. 'ended', NOW, r.id)
  if r.deadline then call('ZREM', r.index .. 'deadlines', r.id) end
  tell(r)
end

local function past(r) return r.deadline and tonumber(r.deadline) <= WALL end
local function ended(status) return status ~= 'queued' and status ~= 'running' end

local function checkpoint(r, data)
  call('SET', r.home .. 'check:' .. r.id, data)
  call('HSET', r.run, 'check', '1', 'mark', r.seq)
  r.check = '1'
end

-- Nothing of an ended run is left. `key`: name of its idempotency key.
local function erase(id, tenant, key)
  local h, x = home(id), index(id)
  if key then
    local used = call('GET', h .. 'key:' .. key)
    if used and string.sub(used, 1, 31) == id then call('DEL', h .. 'key:' .. key) end
  end
  for _, what in ipairs({'log:', 'input:', 'result:', 'check:', 'inputs:', 'run:'}) do call('UNLINK', h .. what .. id) end
  call('ZREM', x .. 'runs', aged(id))
  call('ZREM', x .. 'tenant:' .. (tenant or ''), aged(id))
  call('ZREM', x .. 'dead', id)
  call('ZREM', x .. 'ended', id)
end

-- Events from ARGV[first] on: type, data, type, data ...
local function add(r, batch, ARGV, first)
  local from = r.seq
  for i = first, #ARGV, 2 do write(r, ARGV[i], ARGV[i + 1]) end
  if r.seq > from then
    call('HSET', r.run, 'seq', r.seq, 'batch', batch, 'first', from, 'next', r.seq, 'shown', '1')
  else
    call('HSET', r.run, 'batch', batch, 'first', from, 'next', from)
  end
  return from
end
