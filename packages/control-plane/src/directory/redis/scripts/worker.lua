-- One worker. Returns now (ms), the identity, the record, and for a stock worker the rank and metadata of its lowest
-- rank, for a holding's the node's fields.
local id, field = ARGV[2], ARGV[3]
local found = redis.call('HMGET', source_key(id), '__attributes__', field)
local record = decode(found[2])
if not found[1] or not record then return {text(now_ms)} end
if record.node then
  local node = node_fields(record.node, 'address', 'last_seen', 'expires')
  return {text(now_ms), found[1], found[2], node[1] or false, node[2] or false, node[3] or false}
end
local lowest
for _, known in ipairs(record.ranks or {}) do
  local rank = tonumber(known.rank)
  if rank and (not lowest or rank < lowest) then lowest = rank end
end
if not lowest then return {text(now_ms)} end
return {text(now_ms), found[1], found[2], text(lowest), redis.call('HGET', worker_key(id, field), lowest)}
