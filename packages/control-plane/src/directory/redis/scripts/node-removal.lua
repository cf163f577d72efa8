-- Takes a node out of the directory, and its holdings out of their sources unless another node has announced them since.
local function remove_node(name, ttl_ms)
  for _, worker in ipairs(decode(redis.call('HGET', node_key(name), 'workers')) or {}) do
    local record = record_of(worker[1], worker[2])
    if record and record.node == name then remove_worker(worker[1], worker[2], ttl_ms) end
  end
  redis.call('UNLINK', node_key(name))
  node_changed(name, ttl_ms)
end
