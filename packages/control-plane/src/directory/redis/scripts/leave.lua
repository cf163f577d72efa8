-- A node's clean stop, if this epoch and boot are still its own.
local name, epoch, boot, ttl_ms = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local known = redis.call('HMGET', node_key(name), 'epoch', 'boot_id')
if known[1] == epoch and known[2] == boot then remove_node(name, ttl_ms) end
return {text(now_ms)}
