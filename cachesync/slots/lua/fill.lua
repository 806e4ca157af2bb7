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
local NO_FLOOR = '0000000000000000000'
local slot = redis.call('GET', KEYS[1])
if not slot or string.sub(slot, 1, 1) ~= 'L' or string.sub(slot, 21) ~= ARGV[1] then
    return 0
end
local floor = string.sub(slot, 2, 20)
local version = NO_FLOOR
if string.sub(ARGV[2], 1, 1) == 'V' then
    version = string.sub(ARGV[2], 2, 20)
end
if version >= floor then
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return 1
end
redis.call('DEL', KEYS[1])
return 0
