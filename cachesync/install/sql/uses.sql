-- The objects on which a service needs USAGE to read and write a table: its schema, the schemas of its columns'
-- types, and the sequences from which its defaults draw with the privileges of the inserting role (`serial`).
-- $1 schema, $2 table.
WITH relation AS (
    SELECT c.oid, c.relnamespace
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
), schemas AS (
    SELECT r.relnamespace AS oid FROM relation AS r
    UNION
    SELECT t.typnamespace
    FROM relation AS r
    JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
)
SELECT
    format('SCHEMA %I', n.nspname) AS object,
    has_schema_privilege('cachesync_service', n.oid, 'USAGE') AS granted
FROM schemas AS s
JOIN pg_namespace AS n ON n.oid = s.oid
UNION
SELECT
    format('SEQUENCE %I.%I', n.nspname, s.relname),
    has_sequence_privilege('cachesync_service', s.oid, 'USAGE')
FROM relation AS r
JOIN pg_attrdef AS f ON f.adrelid = r.oid
JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class AS s ON s.oid = d.refobjid AND s.relkind = 'S'
JOIN pg_namespace AS n ON n.oid = s.relnamespace
ORDER BY object;
