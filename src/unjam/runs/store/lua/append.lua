-- KEYS[1]: the run. ARGV: now, again, id, fence, batch, next seq as the owner knows it, type, data ...
-- Small events go with the word that there are some (`redis_codec.news_of`), so that who listens needn't ask.
local id, fence, batch, known = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local key = KEYS[1]
local v = call('HMGET', key, 'status', 'fence', 'seq', 'batch', 'first', 'next', 'cancel', 'length', 'gen')
if not v[1] then return {'unknown'} end
if v[1] ~= 'running' or v[2] ~= fence then return {'fenced', v[1], v[2]} end
local x = index(id)
local r = {id = id, home = home(id), index = x, run = key, seq = tonumber(v[3]), fence = tonumber(v[2]), gen = v[9]}
local last = tonumber(v[4] or 0)
local first, following = tonumber(v[5] or 0), tonumber(v[6] or 0)
local lost = known and known > r.seq
if batch ~= last or batch == 0 or lost then
  if batch ~= last + 1 and not lost then return {'batch', last} end
  mend(r, known, true)
  first = add(r, batch, ARGV, 7)
  following = r.seq
  if following > first then
    local head, size = {following, NOW}, 0
    for i = 7, #ARGV do
      head[#head + 1] = #ARGV[i]
      size = size + #ARGV[i]
    end
    if size <= @NEWS@ then
      call(PUBLISH, r.home .. 'log:' .. id, table.concat(head, ' ') .. '\n' .. table.concat(ARGV, '', 7))
    else
      tell(r)
    end
  end
end
call('ZADD', x .. 'leases', whole(MS + tonumber(v[8])), id)
return {'ok', first, following, v[7]}
