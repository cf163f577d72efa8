-- Removes keys of the directory that hold another type than theirs: pairs of key and type.
-- Returns now (ms) and what was removed.
local removed = {text(now_ms)}
for i = 2, #ARGV, 2 do
  local found = redis.call('TYPE', ARGV[i])['ok']
  if found ~= 'none' and found ~= ARGV[i + 1] then
    redis.call('UNLINK', ARGV[i])
    removed[#removed + 1] = ARGV[i]
  end
end
return removed
