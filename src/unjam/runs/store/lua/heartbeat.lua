-- KEYS[1]: the run. ARGV: now, again, id, fence, lease in ms, 1 with a checkpoint, the checkpoint, its number or empty,
-- version or nothing.
local id = ARGV[3]
local v = call('HMGET', KEYS[1], 'status', 'fence', 'seq', 'cancel', 'saved')
if not v[1] then return {'unknown'} end
if v[1] ~= 'running' or v[2] ~= ARGV[4] then return {'fenced', v[1], v[2]} end
local r = {id = id, home = home(id), run = KEYS[1], seq = v[3]}
if ARGV[6] == '1' then
  local by, last = string.match(v[5] or '', '^(%d+):(%d+)$')
  if ARGV[8] == '' or by ~= ARGV[4] or tonumber(ARGV[8]) > tonumber(last) then
    checkpoint(r, ARGV[7])
    if ARGV[8] ~= '' then call('HSET', KEYS[1], 'saved', ARGV[4] .. ':' .. ARGV[8]) end
  end
end
call('HSET', KEYS[1], 'length', ARGV[5])
if ARGV[9] and not call('HGET', KEYS[1], 'version') then call('HSET', KEYS[1], 'version', ARGV[9]) end
call('ZADD', index(id) .. 'leases', whole(MS + tonumber(ARGV[5])), id)
return {'ok', v[4], call('LLEN', r.home .. 'inputs:' .. id)}
