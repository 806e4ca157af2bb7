-- Takes the lease of a slot whose content cannot be served, for a caller that will fill it.
--
-- KEYS[1]  the slot
-- ARGV[1]  the token of the new lease
-- ARGV[2]  the lifetime of the lease in milliseconds
-- ARGV[3]  the schema fingerprint of the values that the caller can serve
-- ARGV[4]  'read' or 'write'
-- ARGV[5]  optional: the content of the slot of a lookup that its row has refuted
--
-- Returns nil if the lease was taken, else the content of the slot. A value with another schema's fingerprint
-- is a miss: its version becomes the floor, so that no older row replaces it. So is refuted content. Unreadable
-- content is a miss too. A write also replaces 'absent', which its commit may be about to make untrue.
local state, version, fingerprint, slot = read(KEYS[1])
local floor
if state == 'empty' or state == 'unreadable' then
    floor = NO_FLOOR
elseif state == 'value' and (fingerprint ~= ARGV[3] or slot == ARGV[5]) then
    floor = version
elseif state == 'absent' and ARGV[4] == 'write' then
    floor = NO_FLOOR
else
    return slot
end
return store(KEYS[1], 'L' .. floor .. ARGV[1], 'PX', ARGV[2]) or false
