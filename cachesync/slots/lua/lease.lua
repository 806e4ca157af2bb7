-- Takes the lease of a slot whose content cannot be served, for a caller that will fill it.
--
-- KEYS[1]  the slot
-- ARGV[1]  the token of the new lease
-- ARGV[2]  the lifetime of the lease in milliseconds
-- ARGV[3]  the schema fingerprint of the values that the caller can serve
-- ARGV[4]  'read' or 'write'
--
-- Returns nil if the lease was taken, else the content of the slot. A value with another schema's fingerprint
-- is a miss: its version becomes the floor, so that no older row replaces it. A write also replaces 'absent',
-- which its commit may be about to make untrue.
local NO_FLOOR = '0000000000000000000'
local slot = redis.call('GET', KEYS[1])
local floor
if not slot then
    floor = NO_FLOOR
else
    local state = string.sub(slot, 1, 1)
    if state == 'V' and string.sub(slot, 21, 28) ~= ARGV[3] then
        floor = string.sub(slot, 2, 20)
    elseif state == 'A' and ARGV[4] == 'write' then
        floor = NO_FLOOR
    else
        return slot
    end
end
redis.call('SET', KEYS[1], 'L' .. floor .. ARGV[1], 'PX', ARGV[2])
return false
