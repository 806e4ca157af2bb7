-- The partitioned tables above a table, and its own partitions, as they are declared in the entities file; $1 schema, $2
-- table.
WITH RECURSIVE relation AS (
    SELECT c.oid
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
), above AS (
    SELECT r.oid FROM relation AS r
    UNION ALL
    SELECT i.inhparent
    FROM above AS a
    JOIN pg_class AS c ON c.oid = a.oid AND c.relispartition
    JOIN pg_inherits AS i ON i.inhrelid = a.oid
), below AS (
    SELECT r.oid FROM relation AS r
    UNION ALL
    SELECT i.inhrelid
    FROM below AS b
    JOIN pg_class AS c ON c.oid = b.oid AND c.relkind = 'p'
    JOIN pg_inherits AS i ON i.inhparent = b.oid
)
SELECT n.nspname AS schema_name, c.relname AS table_name
FROM (
    SELECT a.oid FROM above AS a
    UNION
    SELECT b.oid FROM below AS b
) AS o
JOIN pg_class AS c ON c.oid = o.oid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE NOT (n.nspname = $1 AND c.relname = $2);
