-- Whether a column row_version belongs to db-cache-sync. Its trigger or its comment can be missing, so either one
-- is enough. The uppermost partitioned table has the comment. $1 schema, $2 table.
SELECT
    EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = c.oid AND g.tgname = 'zzz_cachesync_version')
    OR EXISTS (
        SELECT FROM pg_attribute AS a
        WHERE
            a.attrelid = coalesce(pg_partition_root(c.oid), c.oid) AND a.attname = 'row_version'
            AND col_description(a.attrelid, a.attnum) LIKE 'Written by db-cache-sync%'
    )
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2;
