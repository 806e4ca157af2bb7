-- Gives up an unused lease, so that the next reader does not have to wait until it expires.
--
-- KEYS[1]  the slot
-- ARGV[1]  the token of the lease
--
-- Returns 1 if the slot was emptied, 0 if the lease was no longer held.
local state, _, token = read(KEYS[1])
if state == 'lease' and token == ARGV[1] then
    redis.call('DEL', KEYS[1])
    return 1
end
return 0
