-- One node's announce, fenced by epoch and sequence. Returns now (ms), the verdict and what it tells.
local name, epoch, sequence, boot, store = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local address, state, revision, ttl_ms = ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
local shown_ms, record_ttl_ms, gc_ms, interval_ms = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
local about, generation, holdings = ARGV[15], ARGV[16], ARGV[17]
local FIRST = 18

local function answer(verdict, more) return {text(now_ms), verdict, more or ''} end

local node = node_key(name)
local known = redis.call('HMGET', node, 'epoch', 'sequence', 'boot_id', 'store_id', 'address', 'revision', 'expires',
  'workers', 'refreshed')
-- A record that somebody damaged is none.
local known_epoch = known[2] and known[3] and known[4] and known[1]
local same_start = false
if known_epoch then
  local same_boot = known[3] == boot
  local live = now_ms < tonumber(known[7] or '0')
  if not same_boot and live and known[4] ~= store then return answer('name-taken', known[5]) end
  if less(epoch, known_epoch) or (not same_boot and epoch == known_epoch) then return answer('stale', known_epoch) end
  same_start = same_boot and epoch == known_epoch
  if same_start and not less(known[2], sequence) then return answer('repeated') end
end

local workers = decode(known[8]) or {}
local refreshed = known[9] or text(now_ms)
if holdings == '' then
  if not same_start or known[6] ~= revision then return answer('resend') end
  -- What the directory lost of its own accord must be told again.
  for _, worker in ipairs(workers) do
    if redis.call('HEXISTS', source_key(worker[1]), worker[2]) == 0 then return answer('resend') end
  end
  if math.abs(now_ms - tonumber(refreshed)) > gc_ms / 4 then
    for _, worker in ipairs(workers) do changed(worker[1], worker[2], record_ttl_ms) end
    refreshed = text(now_ms)
  end
end

if store ~= '' then
  local store_key = prefix .. 'store:' .. store
  local other = redis.call('GET', store_key)
  if other ~= name then
    if other and redis.call('HGET', node_key(other), 'store_id') == store then remove_node(other, record_ttl_ms) end
    redis.call('SET', store_key, name, 'PX', text(record_ttl_ms))
  else
    keep(store_key, record_ttl_ms)
  end
end

if holdings ~= '' then
  local kept, told = {}, {}
  for i = FIRST, #ARGV, 4 do
    local id, field, record, attributes = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local stored = redis.call('HGET', source_key(id), field)
    local other = stored ~= record and decode(stored)
    local others = other and other.node ~= name and is_held(other)
    if not others then
      kept[id .. '/' .. field] = true
      told[#told + 1] = {id, field}
      begin_source(id, attributes, generation)
    end
    if others then
      -- Another live node's; this one has it under no name.
    elseif stored ~= record then
      redis.call('HSET', source_key(id), field, record)
      changed(id, field, record_ttl_ms)
      reap(id, gc_ms, interval_ms, record_ttl_ms)
    else
      keep(source_key(id), record_ttl_ms)
      keep(changes_key(id), record_ttl_ms)
    end
  end
  for _, worker in ipairs(workers) do
    if not kept[worker[1] .. '/' .. worker[2]] then
      local record = record_of(worker[1], worker[2])
      if record and record.node == name then remove_worker(worker[1], worker[2], record_ttl_ms) end
    end
  end
  redis.call('HSET', node, 'workers', #told > 0 and cjson.encode(told) or '[]', 'holdings', holdings)
  -- Nodes that are forgotten leave their name for readers; after an hour it goes too.
  local old = redis.call('ZRANGEBYSCORE', nodes_key, '-inf', text(now_us - 3600000000), 'LIMIT', 0, 20)
  for _, other in ipairs(old) do
    if redis.call('EXISTS', node_key(other)) == 0 then redis.call('ZREM', nodes_key, other) end
  end
end
-- Of an unchanged announce, what it changes.
local fields = {'sequence', sequence, 'state', state, 'last_seen', text(now_ms), 'expires', text(now_ms + ttl_ms), 'about', about}
local function set(field, value)
  fields[#fields + 1] = field
  fields[#fields + 1] = value
end
if holdings ~= '' then
  set('epoch', epoch)
  set('boot_id', boot)
  set('revision', revision)
end
if known[4] ~= store then set('store_id', store) end
if known[5] ~= address then set('address', address) end
if known[9] ~= refreshed then set('refreshed', refreshed) end
redis.call('HSET', node, unpack(fields))
redis.call('PEXPIRE', node, text(ttl_ms + shown_ms))
node_changed(name, record_ttl_ms)
return answer('take')
