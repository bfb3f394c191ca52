-- Where the stream is. A clock that is behind a number that was given out has lost data, in a failover or a restart with an
-- older file: a new epoch then says so to everybody who resumes.
-- KEYS: clock   ARGV: a fresh epoch, the epoch known, the number known in it
-- Returns the position of the newest message, with the time of now: epoch-milliseconds-number. The time is kept, because a
-- message that came with an earlier one, after the clock of the machine was set back, would be behind the position.
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
local clock = redis.call('HMGET', KEYS[1], 'epoch', 'ms', 'number')
local epoch, number = clock[1], clock[3] or '0'
if epoch == ARGV[2] and tonumber(number) < tonumber(ARGV[3]) then
    epoch = ARGV[1]
    redis.call('HSET', KEYS[1], 'epoch', epoch)
end
local time = redis.call('TIME')
local ms = string.format('%.0f', math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(clock[2] or 0)))
redis.call('HSET', KEYS[1], 'ms', ms)
return epoch .. '-' .. ms .. '-' .. number
