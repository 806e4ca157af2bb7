-- Fills a slot with what its lease's holder read from the database.
--
-- KEYS[1]  the slot
-- ARGV[1]  the holder's token
-- ARGV[2]  the slot's new content: a value, or 'A' for 'no such row'
-- ARGV[3]  its time to live in milliseconds
--
-- Returns 1 where it was filled. A lease that another holds, or none, stays as it is; what is older than
-- the floor is dropped, and 'absent' is older than any floor: a change has been here since the lease.
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
