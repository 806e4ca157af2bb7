-- Gives a lease back unused, so that the next reader need not wait for its end.
--
-- KEYS[1]  the slot
-- ARGV[1]  the holder's token
--
-- Returns 1 where the slot was emptied, 0 where the lease was no longer held.
local slot = redis.call('GET', KEYS[1])
if slot and string.sub(slot, 1, 1) == 'L' and string.sub(slot, 21) == ARGV[1] then
    redis.call('DEL', KEYS[1])
    return 1
end
return 0
