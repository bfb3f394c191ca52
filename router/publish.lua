-- Numbers messages, keeps them, and publishes them: one step, so that the order of numbers is the order of delivery.
-- KEYS: clock, then of each message: stream, last and, if messages have idempotency keys, once
-- ARGV: messages_max, seconds_max, resume_seconds_max, seconds for which `once` remembers the position (0: no message has an
--   idempotency key), epoch if there is none, then of each message: bus channel, members
-- Returns: of each message its position, epoch-milliseconds-number, or an error; what is wrong with one is not the others' fault.
local call, pcall, format = redis.call, redis.pcall, string.format
local clock = call('HMGET', KEYS[1], 'epoch', 'ms', 'number')
local time = call('TIME')
local now = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(clock[2] or 0))
local epoch, ms, number, given = clock[1] or ARGV[5], format('%d', now), tonumber(clock[3] or 0), 0
local second = string.sub(ms, 1, -4)
local remembers = ARGV[4] ~= '0'
local width = remembers and 3 or 2
local count = (#KEYS - 1) / width

local function give_out(numbers) -- before they are used: whatever fails, none is given out twice
    given = given + numbers
    call('HSET', KEYS[1], 'epoch', epoch, 'ms', ms, 'number', format('%d', number + given))
end

local function publish(id, stream, last, channel, members)
    local before = pcall('SET', last, id, 'EX', ARGV[3], 'GET') or '0-0'
    if type(before) == 'table' then
        return before
    end
    local kept = pcall('XADD', stream, 'MAXLEN', ARGV[1], id, 'p', before, 'm', members)
    if type(kept) == 'table' then
        return kept
    end
    if string.sub(before, 1, #second) ~= second then -- once a second will do: the stream outlives its last message
        call('XTRIM', stream, 'MINID', format('%d', now - ARGV[2] * 1000))
        call('EXPIRE', stream, ARGV[2] + 1)
    end
    local position = epoch .. '-' .. id
    call('PUBLISH', channel, position .. ' ' .. before .. ' ' .. members)
    return position
end

local positions = {}
if not remembers then
    give_out(count)
end
for i = 1, count do
    local key = 2 + (i - 1) * width
    positions[i] = remembers and call('GET', KEYS[key + 2])
    if not positions[i] then
        if remembers then
            give_out(1)
        end
        number, given = number + 1, given - 1
        positions[i] = publish(ms .. '-' .. format('%d', number), KEYS[key], KEYS[key + 1], ARGV[4 + 2 * i], ARGV[5 + 2 * i])
        if remembers and type(positions[i]) == 'string' then
            call('SET', KEYS[key + 2], positions[i], 'EX', ARGV[4])
        end
    end
end
return positions
