-- Applies a change to a slot: an event, or a write that this service has just committed.
--
-- KEYS[1]  the slot
-- ARGV[1]  the version of the change, 19 digits
-- ARGV[2]  the new content of the slot: a value, or '' if the change empties the slot
-- ARGV[3]  the lifetime of the content in milliseconds
-- ARGV[4]  the token of the lease that the writer took before its commit; '' for an event
--
-- Returns the effect: 'advanced', 'emptied', 'filled', 'raised' (the floor of a lease), 'older' or 'empty'.
local slot = redis.call('GET', KEYS[1])
if not slot then
    return 'empty'
end
local version = ARGV[1]
local state = string.sub(slot, 1, 1)
if state == 'V' then
    if version <= string.sub(slot, 2, 20) then
        return 'older'
    end
    if ARGV[2] == '' then
        redis.call('DEL', KEYS[1])
        return 'emptied'
    end
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return 'advanced'
end
if state == 'L' then
    local floor = string.sub(slot, 2, 20)
    local token = string.sub(slot, 21)
    if token == ARGV[4] then
        if ARGV[2] ~= '' and version >= floor then
            redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
            return 'filled'
        end
        redis.call('DEL', KEYS[1])
        return 'emptied'
    end
    if version <= floor then
        return 'older'
    end
    redis.call('SET', KEYS[1], 'L' .. version .. token, 'KEEPTTL')
    return 'raised'
end
redis.call('DEL', KEYS[1])
return 'emptied'
