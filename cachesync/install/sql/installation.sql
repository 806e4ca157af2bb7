-- The number of an entity's installation: the registered one, or else a new one that no earlier installation had.
-- $1 the name of the entity, $2 whether it must be a new one.
SELECT coalesce(
    (SELECT e.installation FROM cachesync.entity AS e WHERE e.name = $1 AND NOT $2), nextval('cachesync.row_version')
);
