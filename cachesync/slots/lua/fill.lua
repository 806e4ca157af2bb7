-- Fills a slot with what the lease holder read from the database.
--
-- KEYS[1]  the slot
-- ARGV[1]  the token of the lease
-- ARGV[2]  the new content of the slot: a value, or 'A' for 'no such row'
-- ARGV[3]  the lifetime of the content in milliseconds
--
-- Returns 1 if the slot was filled, else 0. A slot without this lease is left unchanged. Content below the
-- floor is discarded, and the slot is emptied. 'A' is below any floor but zero, because a raised floor means
-- that a change was applied after the lease was taken.
local state, floor, token = read(KEYS[1])
if state ~= 'lease' or token ~= ARGV[1] then
    return 0
end
local version = NO_FLOOR
if string.sub(ARGV[2], 1, 1) == 'V' then
    version = string.sub(ARGV[2], 2, 20)
end
if version >= floor then
    return store(KEYS[1], ARGV[2], 'PX', ARGV[3]) or 1
end
redis.call('DEL', KEYS[1])
return 0
