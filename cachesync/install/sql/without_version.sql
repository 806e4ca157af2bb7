-- The uppermost partitioned table above a table, or the table itself, in SQL; no row if it has a row version. $1 schema, $2
-- table.
SELECT format('%I.%I', s.nspname, r.relname)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_class AS r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid)
JOIN pg_namespace AS s ON s.oid = r.relnamespace
WHERE
    n.nspname = $1 AND c.relname = $2
    AND NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = r.oid AND a.attname = 'row_version' AND NOT a.attisdropped
    );
