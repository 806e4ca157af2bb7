-- Tries what the other scripts do, on a key that is never a slot.
--
-- KEYS[1]  the key
--
-- Returns 1, or the error of what Redis refuses.
redis.call('GET', KEYS[1])
redis.call('PTTL', KEYS[1])
-- Before any other write, because a full Redis refuses only the first.
local refused = store(KEYS[1], '', 'PX', 1000)
if not refused then
    redis.call('DEL', KEYS[1])
end
return refused or 1
