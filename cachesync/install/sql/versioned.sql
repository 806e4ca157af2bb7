-- Whether a column row_version belongs to db-cache-sync. Its trigger or its comment can be missing, so either one
-- is enough. $1 schema, $2 table.
SELECT
    EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = c.oid AND g.tgname = 'zzz_cachesync_version')
    OR coalesce(col_description(c.oid, a.attnum) LIKE 'Written by db-cache-sync%', false)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'row_version'
WHERE n.nspname = $1 AND c.relname = $2;
