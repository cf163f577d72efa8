-- Takes a source that has ended out of the index.
local id = ARGV[2]
if redis.call('EXISTS', source_key(id)) == 0 then redis.call('ZREM', sources_key, id) end
return {text(now_ms)}
