-- KEYS: clock   ARGV: epoch if there is none.   Returns the position of the newest message: epoch-milliseconds-number.
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
local clock = redis.call('HMGET', KEYS[1], 'epoch', 'ms', 'number')
return clock[1] .. '-' .. (clock[2] or '0') .. '-' .. (clock[3] or '0')
