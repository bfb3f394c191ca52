-- Goes in front of a script in a cluster: which node has the sequence, since when? A replica that was promoted may lack the last
-- messages that its master had answered, and nobody can know: so the sequence begins a new epoch there. A slot that migrates takes
-- all along. What the clock says of its last writer may be older than that reign: a promotion that nothing was written in, or
-- of which the replica got nothing, has to be told from a migration all the same, and in doubt it is a promotion.
-- KEYS: clock   `run`: the replication id of this node, new whenever it becomes a master; nil: it has been looked at before
do
    local function leads(id) -- a node that is a master now, and was all the time: one that has failed comes back as a replica
        for _, shard in ipairs(redis.call('CLUSTER', 'SHARDS')) do
            for field = 1, #shard, 2 do
                for _, node in ipairs(shard[field] == 'nodes' and shard[field + 1] or {}) do
                    local said = {}
                    for part = 1, #node, 2 do
                        said[node[part]] = node[part + 1]
                    end
                    if said.id == id then
                        return said.role == 'master' and said.health == 'online'
                    end
                end
            end
        end
        return false
    end
    local here = redis.call('CLUSTER', 'MYID')
    local writer = redis.call('HMGET', KEYS[1], 'node', 'group', 'run')
    if writer[1] ~= here or (run and writer[3] ~= run) then
        local said = redis.call('INFO', 'replication')
        local group = redis.pcall('CLUSTER', 'MYSHARDID') -- the same for a master and its replicas; Redis 7.0 does not know it
        group = type(group) == 'string' and group or ''
        local promoted = not string.match(said, 'master_replid2:0+%s') -- since it was started
        run = string.match(said, 'master_replid:(%x+)')
        redis.call('HSET', KEYS[1], 'node', here, 'group', group, 'run', run)
        local migrated = group ~= '' and writer[2] ~= group and not promoted and leads(writer[1])
        if writer[1] and not migrated then
            local time = redis.call('TIME')
            begin(string.sub(redis.sha1hex(here .. time[1] .. time[2]), 1, 8))
        end
    end
end
