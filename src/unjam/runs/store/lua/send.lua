-- KEYS[1]: the run. ARGV: now, again, id, token (16 bytes), data, most inputs, most bytes of all. An input is kept behind the token of its sending.
local v = call('HMGET', KEYS[1], 'status', 'seq', 'sent')
local status = v[1]
if not status then return {'unknown'} end
local list = home(ARGV[3]) .. 'inputs:' .. ARGV[3]
if AGAIN then
  local from = math.max(0, call('LLEN', list) - 1000)
  for i, sent in ipairs(call('LRANGE', list, from, -1)) do
    if string.sub(sent, 1, 16) == ARGV[4] then return {'ok', from + i} end
  end
end
if ended(status) then return {'fenced', status, call('HGET', KEYS[1], 'fence')} end
if call('LLEN', list) >= tonumber(ARGV[6]) or tonumber(v[3] or 0) + #ARGV[5] > tonumber(ARGV[7]) then
  return {'inputs full'}
end
call('HINCRBY', KEYS[1], 'sent', #ARGV[5])
local number = call('RPUSH', list, ARGV[4] .. ARGV[5])
tell({home = home(ARGV[3]), id = ARGV[3], seq = v[2]})
return {'ok', number}
