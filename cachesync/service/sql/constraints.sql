-- The columns of each constraint and unique index of a table, and of its partitions, whose own a violation names. $1 schema,
-- $2 table.
SELECT
    c.conname AS name,
    (
        SELECT array_agg(a.attname ORDER BY u.position)
        FROM unnest(c.conkey) WITH ORDINALITY AS u (attnum, position)
        JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = u.attnum
    ) AS columns
FROM pg_constraint AS c
WHERE c.conrelid IN (SELECT t.relid FROM cachesync.partition_tree(format('%I.%I', $1::text, $2::text)::regclass) AS t)
UNION
SELECT
    i.relname AS name,
    (
        SELECT array_agg(a.attname ORDER BY u.position)
        FROM unnest(x.indkey::smallint []) WITH ORDINALITY AS u (attnum, position)
        JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = u.attnum
        WHERE u.attnum > 0
    ) AS columns
FROM pg_index AS x
JOIN pg_class AS i ON i.oid = x.indexrelid
WHERE
    x.indrelid IN (SELECT t.relid FROM cachesync.partition_tree(format('%I.%I', $1::text, $2::text)::regclass) AS t)
    AND x.indisunique;
