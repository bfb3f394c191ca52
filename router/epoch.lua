-- Goes in front of what may begin an epoch. The clock remembers those that it has had: one that it does not know was lost.
-- KEYS: clock
local PAST_CHARS = 64 * 9 -- of so many epochs; somebody who comes from an older one begins another, and all are told
local function begin(epoch, lost)
    local clock = redis.call('HMGET', KEYS[1], 'epoch', 'past')
    local past = (lost and lost .. ' ' or '') .. (clock[1] and clock[1] .. ' ' or '') .. (clock[2] or '')
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'past', string.sub(past, 1, PAST_CHARS))
end
