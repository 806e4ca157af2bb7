-- The number of an entity's installation: that of its row, or a new one, which no earlier installation had; $1 its name.
SELECT coalesce(
    (SELECT e.installation FROM cachesync.entity AS e WHERE e.name = $1), nextval('cachesync.row_version')
);
