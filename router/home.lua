-- Goes in front of a script in a cluster: which node has the sequence? A replica that was promoted may lack the last messages that
-- its master had answered, and nobody can know: so the sequence begins a new epoch there. A slot that migrates takes all along.
-- KEYS: clock
local here = redis.call('CLUSTER', 'MYID')
if redis.call('HGET', KEYS[1], 'node') ~= here then
    local group = redis.pcall('CLUSTER', 'MYSHARDID') -- the same for a master and its replicas; Redis 7.0 does not know it
    group = type(group) == 'string' and group or ''
    local before = redis.call('HGET', KEYS[1], 'group')
    redis.call('HSET', KEYS[1], 'node', here, 'group', group)
    if before and (before == group or group == '') then
        local time = redis.call('TIME')
        redis.call('HSET', KEYS[1], 'epoch', string.sub(redis.sha1hex(here .. time[1] .. time[2]), 1, 8))
    end
end
local run = '' -- for now.lua: always the same, because the epoch tells
