-- KEYS[1]: the run. ARGV: now, again, id, first seq, limit, bytes. In pieces: no more is read than may be answered.
local v = call('HMGET', KEYS[1], 'status', 'seq')
if not v[1] then return {'unknown'} end
local limit, size, events, from = tonumber(ARGV[5]), tonumber(ARGV[6]), {}, ARGV[4] .. '-0'
local piece = 8
while limit > 0 and size > 0 do
  local found = call('XRANGE', home(ARGV[3]) .. 'log:' .. ARGV[3], from, '+', 'COUNT', math.min(piece, limit))
  for _, entry in ipairs(found) do
    table.insert(events, entry)
    size = size - #entry[2][4]
    limit = limit - 1
    if size <= 0 then break end
  end
  if #found < piece then break end
  from = '(' .. found[#found][1]
  piece = piece * 2
end
return {'ok', v[2], v[1], events}
