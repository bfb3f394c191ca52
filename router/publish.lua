-- Numbers one message, keeps it, and publishes it: one step, so that the order of numbers is the order of delivery.
-- KEYS: clock, stream, last, once   ARGV: bus channel, members, messages_max, seconds_max, resume_seconds_max,
--   seconds for which `once` remembers the position (0: the message has no idempotency key), epoch if there is none
-- Returns the message's position: epoch-milliseconds-number.
if ARGV[6] ~= '0' then
    local position = redis.call('GET', KEYS[4])
    if position then
        return position
    end
end
local clock = redis.call('HMGET', KEYS[1], 'epoch', 'ms', 'number')
local time = redis.call('TIME')
local ms = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(clock[2] or 0))
local number = tonumber(clock[3] or 0) + 1
local epoch = clock[1] or ARGV[7]
local id = string.format('%.0f-%.0f', ms, number)
redis.call('HSET', KEYS[1], 'epoch', epoch, 'ms', string.format('%.0f', ms), 'number', string.format('%.0f', number))
local before = redis.call('SET', KEYS[3], id, 'EX', ARGV[5], 'GET') or '0-0'
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[3], id, 'p', before, 'm', ARGV[2])
redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f', ms - ARGV[4] * 1000))
redis.call('EXPIRE', KEYS[2], ARGV[4])
local position = epoch .. '-' .. id
if ARGV[6] ~= '0' then
    redis.call('SET', KEYS[4], position, 'EX', ARGV[6])
end
redis.call('PUBLISH', ARGV[1], position .. ' ' .. before .. ' ' .. ARGV[2])
return position
