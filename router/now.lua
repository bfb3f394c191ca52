-- Where the stream is, and whether Redis still has what it had given out. Goes behind what says `run`, who is the master.
-- KEYS: clock   ARGV: a fresh epoch, the epoch known, the number known in it
-- Returns the position of the newest message, with the time of now: epoch-milliseconds-number. The time is kept, because a
-- message that came with an earlier one, after the clock of the machine was set back, would be behind the position.
--
-- Numbers come in spans. Another master (a replica that was promoted, or this one started again: its replication id is new) may
-- lack the newest numbers, so it begins a span: no number is given out twice. `end:N` is the last number that it has of span N.
-- Who knows of a later one in that span has proof of a loss, however much has been published since: a new epoch then says so
-- to everybody. So has who knows of an epoch that the clock has never had: it was begun elsewhere, and is lost with all in it.
local SPAN = 10000000000
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
local clock = redis.call('HMGET', KEYS[1], 'epoch', 'ms', 'number', 'run', 'past')
local epoch, number, known = clock[1], tonumber(clock[3] or 0), tonumber(ARGV[3])
if run ~= clock[4] then
    if clock[4] then
        local span = math.floor(number / SPAN)
        redis.call('HSET', KEYS[1], 'end:' .. string.format('%.0f', span), string.format('%.0f', number))
        number = (span + 1) * SPAN
    end
    redis.call('HSET', KEYS[1], 'run', run, 'number', string.format('%.0f', number))
end
if epoch == ARGV[2] then
    local span, last = math.floor(known / SPAN), number
    if span < math.floor(number / SPAN) then
        last = tonumber(redis.call('HGET', KEYS[1], 'end:' .. string.format('%.0f', span)) or -1)
    end
    if known > last then
        epoch = ARGV[1]
        begin(epoch)
    end
elseif ARGV[2] ~= '' and not string.find(clock[5] or '', ARGV[2], 1, true) then
    epoch = ARGV[1]
    begin(epoch, ARGV[2])
end
local time = redis.call('TIME')
local ms = string.format('%.0f', math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(clock[2] or 0)))
redis.call('HSET', KEYS[1], 'ms', ms)
return epoch .. '-' .. ms .. '-' .. string.format('%.0f', number)
