-- KEYS[1]: schema. ARGV: now, again, tag of the index, schema, replication id, id of the history it was promoted from.
-- Answers with the schema found. A server promoted since we last came may lack what its master had acknowledged.
local x = P .. '{' .. ARGV[3] .. '}:'
local found = call('GET', x .. 'schema')
if found and found ~= ARGV[4] then return {'ok', found, 0} end
if not found then call('SET', x .. 'schema', ARGV[4]) end
local lineage, promoted = call('GET', x .. 'lineage'), 0
if ARGV[5] ~= '' and lineage ~= ARGV[5] then
  if lineage and ARGV[6] ~= '' then
    promoted = 1
    call('INCR', x .. 'gen')
  end
  call('SET', x .. 'lineage', ARGV[5])
end
return {'ok', ARGV[4], promoted}
