-- KEYS[1]: the run. ARGV: now, again, id, after, limit, bytes. In pieces: no more is read than may be answered.
if call('EXISTS', KEYS[1]) == 0 then return {'unknown'} end
local list, from, found = home(ARGV[3]) .. 'inputs:' .. ARGV[3], tonumber(ARGV[4]), {}
local limit, size, piece = tonumber(ARGV[5]), tonumber(ARGV[6]), 8
while limit > 0 and size > 0 do
  local sent = call('LRANGE', list, whole(from), whole(from + math.min(piece, limit) - 1))
  for _, data in ipairs(sent) do
    table.insert(found, data)
    size = size - #data + 16
    limit = limit - 1
    if size <= 0 then break end
  end
  if #sent < piece then break end
  from, piece = from + piece, piece * 2
end
return {'ok', found}
