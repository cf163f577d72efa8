-- What all scripts share. Times are Redis's own: microseconds order changes, milliseconds are shown and compared.
-- KEYS[1] routes the script; ARGV[1] is the prefix of every key, so that all of them lie in one slot of a cluster.
local prefix = ARGV[1]
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now_ms = math.floor(now_us / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local function source_key(id) return prefix .. 'source:' .. id end
local function worker_key(id, field) return prefix .. 'source:' .. id .. ':' .. field end
local function changes_key(id) return prefix .. 'changes:' .. id end
local function topology_key(id) return prefix .. 'topology:' .. id end
local function node_key(name) return prefix .. 'node:' .. name end
local nodes_key = prefix .. 'nodes'
local sources_key = prefix .. 'sources'

-- A table, or nil for what somebody else wrote there.
local function decode(json)
  if not json then return nil end
  local ok, value = pcall(cjson.decode, json)
  if ok and type(value) == 'table' then return value end
  return nil
end

-- The record of a worker that the caller did not name; nil too where somebody put another type.
local function record_of(id, field)
  local raw = redis.pcall('HGET', source_key(id), field)
  if type(raw) ~= 'string' then return nil end
  return decode(raw)
end

-- Fields of a node that the caller did not name; none of them where somebody put another type.
local function node_fields(name, ...)
  local values = redis.pcall('HMGET', node_key(name), ...)
  return values.err and {} or values
end

-- True for the record of a holding whose node's announces go on.
local function is_held(record)
  return record and record.node and now_ms < (tonumber(node_fields(record.node, 'expires')[1] or '0') or 0)
end

-- Decimal numbers of 64 bits as text: Lua's own lose digits above 2^53.
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end

-- True when a write of a rank was received well before the newest one that is stored. What is stored from a time to come
-- was so before the clock was set back, and says nothing.
local function is_late(known, received_ms, tolerance_ms)
  local stored_ms = tonumber(known.received) or 0
  return stored_ms <= now_ms + tolerance_ms and received_ms + tolerance_ms < stored_ms
end

-- Every key has a lifetime; it is written anew only when half of it is over, for the log's sake.
local function keep(key, ttl_ms)
  if redis.call('PTTL', key) < ttl_ms / 2 then redis.call('PEXPIRE', key, text(ttl_ms)) end
end

-- Numbers a change of one worker of a source, or its removal.
local function changed(id, field, ttl_ms)
  local source, changes = source_key(id), changes_key(id)
  local version = math.max(now_us, tonumber(redis.call('HGET', source, '__version__') or '0') + 1)
  redis.call('HSET', source, '__version__', text(version))
  redis.call('ZADD', changes, text(version), field)
  redis.call('ZADD', sources_key, text(now_ms), id)
  keep(source, ttl_ms)
  keep(changes, ttl_ms)
  keep(sources_key, ttl_ms)
end

-- Numbers an announce of a node, or its removal.
local function node_changed(name, ttl_ms)
  local top = redis.call('ZREVRANGE', nodes_key, 0, 0, 'WITHSCORES')
  local version = math.max(now_us, tonumber(top[2] or '0') + 1)
  redis.call('ZADD', nodes_key, text(version), name)
  keep(nodes_key, ttl_ms)
end

-- A source as it begins: whose it is, and a random name for this life of it.
local function begin_source(id, attributes, generation)
  local source = source_key(id)
  redis.call('HSETNX', source, '__attributes__', attributes)
  redis.call('HSETNX', source, '__generation__', generation)
  redis.call('HSETNX', source, '__floor__', '0')
  redis.call('HSETNX', source, '__reaped__', '0')
end

local function remove_worker(id, field, ttl_ms)
  redis.call('HDEL', source_key(id), field)
  redis.call('HDEL', topology_key(id), field)
  redis.call('UNLINK', worker_key(id, field))
  changed(id, field, ttl_ms)
end

-- Removes what has not been heard of for gc_ms, some at a time, at most once an interval for each source.
local function reap(id, gc_ms, interval_ms, ttl_ms)
  local source, changes = source_key(id), changes_key(id)
  local last = tonumber(redis.call('HGET', source, '__reaped__') or '0')
  if math.abs(now_ms - last) < interval_ms then return end
  redis.call('HSET', source, '__reaped__', text(now_ms))
  local over = redis.call('ZRANGEBYSCORE', changes, '-inf', text(now_us - gc_ms * 1000), 'WITHSCORES', 'LIMIT', 0, 100)
  for i = 1, #over, 2 do
    local field, score = over[i], over[i + 1]
    local raw = redis.call('HGET', source, field)
    local record = decode(raw)
    if not raw then
      -- A removal that everybody has seen by now; who has not loads the source anew.
      redis.call('ZREM', changes, field)
      redis.call('HSET', source, '__floor__', score)
    elseif record and record.node and redis.call('EXISTS', node_key(record.node)) == 1 then
      changed(id, field, ttl_ms)
    else
      remove_worker(id, field, ttl_ms)
    end
  end
end
