-- Repairs a slot that was found to be wrong, unless it has changed since it was read.
--
-- KEYS[1]  the slot
-- ARGV[1]  the content of the slot, read before the row was read; '' for a key of another Redis type
-- ARGV[2]  the new content of the slot: a value, or '' to empty the slot
-- ARGV[3]  the lifetime of the content in milliseconds
--
-- Returns 1 if the slot was repaired, 0 if its content has changed.
local _, _, _, slot = read(KEYS[1])
if slot ~= ARGV[1] then
    return 0
end
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
    return 1
end
return store(KEYS[1], ARGV[2], 'PX', ARGV[3]) or 1
