-- A table, the partitioned tables above it, and the partitions of all of these. $1 schema, $2 table.
--
-- `other_owner` is the owner, if the user of the session does not have the privileges of that role: a partition gets its
-- column from the uppermost table, and so do all others. `shares_rows` is whether it is above or below the given table.
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
), tree AS (
    SELECT a.oid, a.oid = r.oid AS is_below
    FROM above AS a
    CROSS JOIN relation AS r
    UNION
    SELECT i.inhrelid, t.is_below OR i.inhrelid = r.oid
    FROM tree AS t
    JOIN pg_class AS c ON c.oid = t.oid AND c.relkind = 'p'
    JOIN pg_inherits AS i ON i.inhparent = t.oid
    CROSS JOIN relation AS r
)
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name,
    CASE WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN pg_get_userbyid(c.relowner) END AS other_owner,
    t.oid <> r.oid AND (t.is_below OR t.oid IN (SELECT a.oid FROM above AS a)) AS shares_rows
FROM tree AS t
CROSS JOIN relation AS r
JOIN pg_class AS c ON c.oid = t.oid
JOIN pg_namespace AS n ON n.oid = c.relnamespace;
