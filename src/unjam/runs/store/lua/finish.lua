-- KEYS[1]: the run. ARGV: now, again, id, fence, token, status, 1 with a result, result, 1 with an error, error, data of
-- the last event, batch, next seq as the owner knows it, type, data ...
local r = fetch(ARGV[3])
if not r then return {'unknown'} end
local fence = tonumber(ARGV[4])
if r.settled and tonumber(r.settled) == fence then
  return {'ok', (AGAIN and r.op == ARGV[5]) and 1 or 0, view(r)}
end
if r.status ~= 'running' or r.fence ~= fence then return {'fenced', r.status, r.fence} end
local batch, known = tonumber(ARGV[12]), tonumber(ARGV[13])
local lost = known and known > r.seq
if #ARGV > 13 then
  local repeated = batch and batch == r.batch and batch > 0 and not lost
  if batch and not repeated and batch ~= r.batch + 1 and not lost then return {'batch', r.batch} end
  mend(r, known, true)
  if not repeated then add(r, batch or r.batch + 1, ARGV, 14) end
else
  mend(r, known, true)
end
if ARGV[7] == '1' then call('SET', r.home .. 'result:' .. r.id, ARGV[8]) end
settle(r, ARGV[6], ARGV[11], ARGV[9] == '1' and ARGV[10], 'settled', fence, 'op', ARGV[5])
return {'ok', 1, view(r)}
