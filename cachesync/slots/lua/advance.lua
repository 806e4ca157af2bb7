-- Brings rows that were read from the database past the cache to their slots. They only ever replace what is older, as
-- events do: an empty slot stays empty, because the rows may have changed since they were read.
--
-- KEYS     the slots
-- ARGV[1]  the lifetime of the new contents in milliseconds
-- ARGV     from the second on, for each slot two: the version of the row, 19 digits, and the new content of the slot
--
-- Returns 1.
local refused
for index, name in ipairs(KEYS) do
    local effect = apply(name, ARGV[2 * index], ARGV[2 * index + 1], ARGV[1], '')
    if type(effect) == 'table' then
        refused = effect
    end
end
return refused or 1
