-- Precedes every other script of this folder: what a slot is, and how its content is replaced.

local NO_FLOOR = '0000000000000000000'
-- The longest lease that can be configured, in milliseconds. Nobody who took a lease waits for one that lasts longer.
local LONGEST_LEASE = 60000
local NUMBERED = '^([VL])(%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d)'

-- Returns the state of a slot: 'empty', 'lease', 'value', 'absent' or 'unreadable'; of a lease its floor and its
-- token, of a value its version and its fingerprint; and in any case the content. A key of another Redis type is
-- unreadable, and so are a value without any payload and a lease whose lifetime is not that of a lease.
local function read(name)
    local slot = redis.pcall('GET', name)
    if not slot then
        return 'empty', nil, nil, slot
    end
    if type(slot) == 'table' then
        return 'unreadable', nil, nil, ''
    end
    if slot == 'A' then
        return 'absent', nil, nil, slot
    end
    local letter, version = string.match(slot, NUMBERED)
    if letter == 'V' and #slot > 28 then
        return 'value', version, string.sub(slot, 21, 28), slot
    end
    if letter == 'L' and #slot > 20 then
        local left = redis.call('PTTL', name)
        if left >= 0 and left <= LONGEST_LEASE then
            return 'lease', version, string.sub(slot, 21), slot
        end
    end
    return 'unreadable', nil, nil, slot
end

-- Replaces the content of a slot. If Redis refuses that, for example because it is full, the slot is emptied instead,
-- which cannot be wrong, and the error is returned. If Redis refuses that too, the script fails.
local function store(name, ...)
    local reply = redis.pcall('SET', name, ...)
    if reply.err then
        redis.call('DEL', name)
        return redis.error_reply('REFUSED ' .. reply.err)
    end
end

-- Applies a committed change to a slot; see change.lua.
local function apply(name, version, content, lifetime, token)
    local state, current, held = read(name)
    if state == 'empty' then
        return 'empty'
    end
    if state == 'value' then
        if version == current then
            return 'repeated'
        end
        if version < current then
            return 'older'
        end
        if content == '' then
            redis.call('DEL', name)
            return 'emptied'
        end
        return store(name, content, 'PX', lifetime) or 'advanced'
    end
    if state == 'lease' then
        if held == token then
            if content ~= '' and version >= current then
                return store(name, content, 'PX', lifetime) or 'filled'
            end
            redis.call('DEL', name)
            return 'emptied'
        end
        if version == current then
            return 'repeated'
        end
        if version < current then
            return 'older'
        end
        return store(name, 'L' .. version .. held, 'KEEPTTL') or 'raised'
    end
    redis.call('DEL', name)
    return 'emptied'
end
