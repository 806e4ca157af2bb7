-- The owner of a table, or of one of its partitions or the partitioned tables above it, of whom the user of the session does
-- not have the privileges; null if there is none. $1 schema, $2 table.
WITH RECURSIVE above AS (
    SELECT c.oid
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
    UNION ALL
    SELECT i.inhparent
    FROM above AS a
    JOIN pg_class AS c ON c.oid = a.oid AND c.relispartition
    JOIN pg_inherits AS i ON i.inhrelid = a.oid
), tree AS (
    -- A partition gets its column from the uppermost table, and so do all others.
    SELECT a.oid FROM above AS a
    UNION
    SELECT i.inhrelid
    FROM tree AS t
    JOIN pg_class AS c ON c.oid = t.oid AND c.relkind = 'p'
    JOIN pg_inherits AS i ON i.inhparent = t.oid
)
SELECT pg_get_userbyid(c.relowner)
FROM tree AS t
JOIN pg_class AS c ON c.oid = t.oid
WHERE NOT pg_has_role(c.relowner, 'USAGE')
LIMIT 1;
