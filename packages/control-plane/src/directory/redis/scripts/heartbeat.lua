-- Takes one heartbeat of a stock worker's rank. Returns now (ms) and 'stored', 'superseded' or 'unknown'.
local id, field, rank, status, load = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local received_ms, tolerance_ms, gc_ms = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local interval_ms, ttl_ms = tonumber(ARGV[10]), tonumber(ARGV[11])

local source, worker = source_key(id), worker_key(id, field)
local record = decode(redis.call('HGET', source, field))
local known
for _, other in ipairs(record and record.ranks or {}) do
  if other.rank == rank then known = other end
end
-- Without its metadata a worker is of no use: who is told so publishes again.
if not known or redis.call('HEXISTS', worker, rank) == 0 then return {text(now_ms), 'unknown'} end
if is_late(known, received_ms, tolerance_ms) then return {text(now_ms), 'superseded'} end
known.status, known.updated_at, known.received = status, now_ms, received_ms
known.load = load ~= '' and tonumber(load) or nil
redis.call('HSET', source, field, cjson.encode(record))
keep(worker, ttl_ms)
if redis.call('EXISTS', topology_key(id)) == 1 then keep(topology_key(id), ttl_ms) end
changed(id, field, ttl_ms)
reap(id, gc_ms, interval_ms, ttl_ms)
return {text(now_ms), 'stored'}
