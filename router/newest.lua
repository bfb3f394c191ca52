-- Reads a channel's stream from one of its ends, bounded by count and bytes.
-- KEYS: stream   ARGV: id to begin behind, or '' for the newest; messages_max, bytes_max
-- Returns entries as XRANGE does: those behind the id from the oldest on, or those before the end from the newest on; at least one, if
-- there is any. A few at a time: of large messages few fit, and the others would have been copied for nothing.
local page, bytes, room = {}, 0, tonumber(ARGV[2])
local command, at, to = 'XRANGE', '(' .. ARGV[1], '+'
if ARGV[1] == '' then
    command, at, to = 'XREVRANGE', '+', '-'
end
while room > 0 do
    local count = math.min(room, 20)
    local entries = redis.call(command, KEYS[1], at, to, 'COUNT', count)
    for _, entry in ipairs(entries) do
        bytes = bytes + #(entry[2][4] or '')
        if #page > 0 and bytes > tonumber(ARGV[3]) then
            return page
        end
        page[#page + 1] = entry
        at = '(' .. entry[1]
    end
    if #entries < count then
        return page
    end
    room = room - count
end
return page
