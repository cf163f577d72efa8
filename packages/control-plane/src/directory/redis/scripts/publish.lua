-- Stores one rank of a stock worker. Returns now (ms) and 'stored', 'superseded' or 'taken'.
local id, field, attributes, generation = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local rank, status, accelerator, topology = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9]
local received_ms, tolerance_ms, fresh_ms, gc_ms = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local interval_ms, ttl_ms, metadata, about = tonumber(ARGV[14]), tonumber(ARGV[15]), ARGV[16], ARGV[17]

local source, worker = source_key(id), worker_key(id, field)
local record = decode(redis.call('HGET', source, field))
if is_held(record) then return {text(now_ms), 'taken'} end
local ranks, load = {}, nil
for _, known in ipairs(record and record.ranks or {}) do
  if known.rank == rank then
    if is_late(known, received_ms, tolerance_ms) then return {text(now_ms), 'superseded'} end
    -- What is live stays live: a second publish must not hide it.
    if now_ms - (tonumber(known.updated_at) or 0) < fresh_ms then status, load = known.status, known.load end
  elseif now_ms - (tonumber(known.updated_at) or 0) < gc_ms then
    ranks[#ranks + 1] = known
  else
    redis.call('HDEL', worker, known.rank, known.rank .. ':about')
  end
end
ranks[#ranks + 1] = {
  rank = rank, status = status, load = load, accelerator = accelerator, updated_at = now_ms, received = received_ms
}
begin_source(id, attributes, generation)
redis.call('HSET', worker, rank, metadata, rank .. ':about', about)
redis.call('PEXPIRE', worker, text(ttl_ms))
redis.call('HSET', source, field, cjson.encode({ranks = ranks}))
if topology ~= '' then
  redis.call('HSET', topology_key(id), field, topology)
  keep(topology_key(id), ttl_ms)
else
  redis.call('HDEL', topology_key(id), field)
end
changed(id, field, ttl_ms)
reap(id, gc_ms, interval_ms, ttl_ms)
return {text(now_ms), 'stored'}
