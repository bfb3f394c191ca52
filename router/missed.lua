-- Reads what a channel's stream holds behind a position, in pages bounded by count and bytes.
-- KEYS: stream, last, clock   ARGV: position to begin behind, messages_max, bytes_max
-- Returns: id of the channel's last message or '', 1 if there is more, 1 if that position is of a number that was given out and lost
-- (see now.lua) or of another epoch, where the same number is another message; then id, id of the one before it, members of each.
-- An entry that is not of ours, because it lacks fields, comes with empty ones.
-- A few at a time: of large messages a page holds few, and the others would have been copied for nothing.
local SPAN = 10000000000
local page = {redis.call('GET', KEYS[2]) or '', 0, 0}
local clock = redis.call('HMGET', KEYS[3], 'epoch', 'number')
local epoch, after, number = string.match(ARGV[1], '^(%x+)-(%d+-(%d+))$')
if clock[1] ~= epoch then
    page[3] = 1
    return page
end
local room, bytes = tonumber(ARGV[2]), 0
local span = math.floor(tonumber(number) / SPAN)
if span < math.floor(tonumber(clock[2] or 0) / SPAN) then
    if tonumber(number) > tonumber(redis.call('HGET', KEYS[3], 'end:' .. string.format('%.0f', span)) or -1) then
        page[3] = 1
    end
end
while true do
    local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 20)
    for _, entry in ipairs(entries) do
        local before, members = entry[2][2] or '', entry[2][4] or ''
        bytes = bytes + #members
        if room == 0 or (#page > 3 and bytes > tonumber(ARGV[3])) then
            page[2] = 1
            return page
        end
        page[#page + 1] = entry[1]
        page[#page + 1] = before
        page[#page + 1] = members
        after, room = entry[1], room - 1
    end
    if #entries < 20 then
        return page
    end
end
