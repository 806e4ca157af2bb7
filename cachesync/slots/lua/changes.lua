-- Applies events to several slots, at most one to each.
--
-- KEYS     the slots
-- ARGV[1]  the lifetime of the new contents in milliseconds
-- ARGV     from the second on, for each slot: the new content, a value; or only its 'V' and the version, if the change
--          empties the slot
--
-- Returns the effects on the slots, as change.lua names them: first the error if Redis refused a content, so that the
-- slot was emptied instead, else ''; then each effect, or 'refused', followed by the number of slots. After a refusal,
-- the other slots are left alone: Redis would no longer refuse them anything, full as it is, because this script has
-- already changed something.
local refused = ''
local numbers = {}
for index, name in ipairs(KEYS) do
    local content = ARGV[index + 1]
    local version = string.sub(content, 2, 20)
    if #content == 20 then
        content = ''
    end
    local effect = apply(name, version, content, ARGV[1], '')
    if type(effect) == 'table' then
        refused = effect.err
        effect = 'refused'
    end
    numbers[effect] = (numbers[effect] or 0) + 1
    if effect == 'refused' then
        break
    end
end
local effects = { refused }
for effect, number in pairs(numbers) do
    effects[#effects + 1] = effect
    effects[#effects + 1] = number
end
return effects
