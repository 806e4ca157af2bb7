-- The registered entities with the tables that have their triggers now, even if they were renamed; null if the
-- table was dropped. A partition has triggers of its partitioned table.
SELECT e.name, e.key_columns, n.nspname AS schema_name, c.relname AS table_name
FROM cachesync.entity AS e
LEFT JOIN pg_class AS c ON c.relkind IN ('p', 'r') AND c.oid = coalesce(
    (
        SELECT g.tgrelid
        FROM pg_trigger AS g
        JOIN pg_proc AS f ON f.oid = g.tgfoid AND f.pronamespace = 'cachesync'::regnamespace
        WHERE
            f.proname ~ ('^' || e.name || '_(log_(insert|update|move|delete|truncate|row)|redraw_as_writer)$')
            AND g.tgparentid = 0
        ORDER BY f.proname ~ '_log_truncate$'
        LIMIT 1
    ),
    to_regclass(format('%I.%I', e.schema_name, e.table_name))
)
LEFT JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY e.name;
