-- Goes in front of now.lua: who is the master. Its replication id is new whenever it becomes one, and at
-- every start: https://redis.io/docs/latest/operate/oss_and_stack/management/replication/
local run = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
