-- KEYS[1]: order of the index. ARGV: now, again, tag, seconds, limit.
local x, deleted = P .. '{' .. ARGV[3] .. '}:', 0
local old = call('ZRANGEBYSCORE', x .. 'ended', '-inf', string.format('(%.6f', WALL - tonumber(ARGV[4])), 'LIMIT', 0, ARGV[5])
for _, id in ipairs(old) do
  local h = home(id)
  local v = call('HMGET', h .. 'run:' .. id, 'tenant', 'key')
  if v[2] then
    local used = call('GET', h .. 'key:' .. v[2])
    if used and string.sub(used, 1, 31) == id then call('DEL', h .. 'key:' .. v[2]) end
  end
  for _, what in ipairs({'log:', 'input:', 'result:', 'check:', 'inputs:', 'run:'}) do call('UNLINK', h .. what .. id) end
  call('ZREM', x .. 'runs', aged(id))
  call('ZREM', x .. 'tenant:' .. (v[1] or ''), aged(id))
  call('ZREM', x .. 'dead', id)
  call('ZREM', x .. 'ended', id)
  deleted = deleted + 1
end
return {'ok', deleted}
