-- How far a table has come; $1 schema, $2 table.
SELECT
    EXISTS (
        SELECT FROM pg_trigger AS g WHERE g.tgrelid = c.oid AND g.tgname = 'cachesync_version'
    ) AS versioning,
    coalesce(
        (SELECT a.attnotnull FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'row_version'), false
    ) AS versioned,
    greatest(c.reltuples, 0)::bigint AS rows
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2;
