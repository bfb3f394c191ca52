-- Reads what a channel's stream holds behind a position, in pages bounded by count and bytes.
-- KEYS: stream, last   ARGV: id to begin behind, messages_max, bytes_max
-- Returns: id of the channel's last message or '', 1 if there is more, then id, id of the one before, members of each.
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2] + 1)
local page = {redis.call('GET', KEYS[2]) or '', 0}
local bytes = 0
for index, entry in ipairs(entries) do
    bytes = bytes + #entry[2][4]
    if index > tonumber(ARGV[2]) or (index > 1 and bytes > tonumber(ARGV[3])) then
        page[2] = 1
        break
    end
    page[#page + 1] = entry[1]
    page[#page + 1] = entry[2][2]
    page[#page + 1] = entry[2][4]
end
return page
