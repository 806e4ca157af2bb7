-- The user's tables, with what rules out some of them: a partition belongs to another table, the uppermost of which is
-- the root, and a table of an extension to that extension.
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name,
    CASE
        WHEN c.relispartition THEN 'it is a partition of ' || r.oid::pg_catalog.regclass::text
        WHEN e.extname IS NOT NULL THEN 'it belongs to the extension ' || e.extname
    END AS reason,
    s.nspname AS root_schema,
    r.relname AS root_table
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class AS r ON c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)
LEFT JOIN pg_catalog.pg_namespace AS s ON s.oid = r.relnamespace
LEFT JOIN pg_catalog.pg_depend AS d
    ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e'
LEFT JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
WHERE c.relkind IN ('f', 'p', 'r') AND n.nspname NOT IN ('cachesync', 'information_schema') AND n.nspname !~ '^pg_'
ORDER BY n.nspname <> 'public', n.nspname, c.relname;
