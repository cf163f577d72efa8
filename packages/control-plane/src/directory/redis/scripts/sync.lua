-- What changed in one source and in the nodes since a reader's last call. Returns now (ms), the source's part and the
-- nodes' part.
local id, generation, since, most, nodes_since = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])

local function source_part()
  local source = source_key(id)
  local head = redis.call('HMGET', source, '__generation__', '__version__', '__floor__', '__attributes__')
  local version = head[2]
  if not head[1] or not version or not head[4] then return {'none'} end
  if head[1] == generation and tonumber(since) >= tonumber(head[3] or '0') then
    if version == since then return {'same'} end
    local fields = redis.call('ZRANGEBYSCORE', changes_key(id), '(' .. since, '+inf', 'LIMIT', 0, most + 1)
    if #fields > 0 and #fields <= most then
      local records = redis.call('HMGET', source, unpack(fields))
      local topologies = redis.call('HMGET', topology_key(id), unpack(fields))
      return {'delta', version, fields, records, topologies}
    end
  end
  return {'whole', version, head[1], head[4], redis.call('HGETALL', source), redis.call('HGETALL', topology_key(id))}
end

local function nodes_part()
  local top = redis.call('ZREVRANGE', nodes_key, 0, 0, 'WITHSCORES')
  local version = top[2] or '0'
  -- A clock that went back, or a Redis that forgot: from the start.
  local from = tonumber(version) < nodes_since and '-inf' or '(' .. ARGV[6]
  local changes = redis.call('ZRANGEBYSCORE', nodes_key, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 5000)
  local nodes = {}
  for i = 1, #changes, 2 do
    local known = node_fields(changes[i], 'epoch', 'state', 'address', 'last_seen', 'expires')
    nodes[#nodes + 1] = {
      changes[i], known[1] or false, known[2] or false, known[3] or false, known[4] or false, known[5] or false
    }
  end
  return {changes[#changes] or version, nodes}
end

return {text(now_ms), id ~= '' and source_part() or {'none'}, nodes_part()}
