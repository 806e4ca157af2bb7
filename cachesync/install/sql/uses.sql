-- The objects on which roles need USAGE. A service needs it to read and write a table: on its schema, the schemas of its
-- columns' types, and the sequences from which its defaults draw with the privileges of the inserting role (`serial`).
-- What finds a row by the text of its key names the types of the key's columns. $1 schema, $2 table.
WITH RECURSIVE relation AS (
    SELECT c.oid, c.relnamespace
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
), key_types AS (
    SELECT a.atttypid AS oid
    FROM relation AS r
    JOIN pg_index AS i ON i.indrelid = r.oid AND i.indisprimary
    JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum = ANY(i.indkey)
    UNION ALL
    SELECT t.typbasetype
    FROM key_types AS k
    JOIN pg_type AS t ON t.oid = k.oid AND t.typtype = 'd'
), schemas AS (
    SELECT 'cachesync_service' AS role, r.relnamespace AS oid FROM relation AS r
    UNION
    SELECT u.role, t.typnamespace
    FROM key_types AS k
    JOIN pg_type AS t ON t.oid = k.oid AND t.typtype <> 'd'
    CROSS JOIN unnest('{cachesync_service, cachesync_worker}'::text []) AS u (role)
    UNION
    SELECT 'cachesync_service', t.typnamespace
    FROM relation AS r
    JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
)
SELECT
    s.role,
    format('SCHEMA %I', n.nspname) AS object,
    has_schema_privilege(s.role, n.oid, 'USAGE') AS granted
FROM schemas AS s
JOIN pg_namespace AS n ON n.oid = s.oid
UNION
SELECT
    'cachesync_service',
    format('SEQUENCE %I.%I', n.nspname, s.relname),
    has_sequence_privilege('cachesync_service', s.oid, 'USAGE')
FROM relation AS r
JOIN pg_attrdef AS f ON f.adrelid = r.oid
JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class AS s ON s.oid = d.refobjid AND s.relkind = 'S'
JOIN pg_namespace AS n ON n.oid = s.relnamespace
ORDER BY object, role;
