-- Repairs a slot that was found to be wrong, unless anything has changed it since.
--
-- KEYS[1]  the slot
-- ARGV[1]  the slot's content as it was read, before the row was
-- ARGV[2]  its new content: a value, or '' where the slot is emptied
-- ARGV[3]  its time to live in milliseconds
--
-- Returns 1 where it was repaired, 0 where it is no longer what was read.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
