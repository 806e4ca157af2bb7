-- The properties that determine whether tables can be registered. $1 their schemas, $2 their names. No row for a
-- table that does not exist.
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name,
    c.relkind AS kind,
    c.relpersistence = 'u' AS unlogged,
    c.reloftype <> 0 AS typed,
    c.relrowsecurity AS row_security,
    c.relforcerowsecurity AS hides_rows,
    (
        SELECT coalesce(array_agg(p.polname ORDER BY p.polname), '{}')
        FROM pg_policy AS p
        WHERE
            p.polrelid = c.oid AND NOT p.polpermissive
            -- 0 is PUBLIC.
            AND (0 = ANY(p.polroles) OR to_regrole('cachesync_service') = ANY(p.polroles))
    ) AS restrictive_policies,
    (
        SELECT coalesce(array_agg(g.tgname ORDER BY g.tgname), '{}')
        FROM pg_trigger AS g
        JOIN pg_proc AS f ON f.oid = g.tgfoid
        JOIN pg_namespace AS s ON s.oid = f.pronamespace
        WHERE
            g.tgrelid = c.oid AND g.tgname > 'zzz_cachesync_version' AND g.tgenabled <> 'D'
            -- 1 is the bit of FOR EACH ROW, 2 that of BEFORE, 4 and 16 are those of INSERT and UPDATE.
            AND g.tgtype & 3 = 3 AND g.tgtype & 20 <> 0 AND s.nspname <> 'cachesync'
    ) AS late_triggers,
    EXISTS (SELECT FROM pg_subscription_rel AS s WHERE s.srrelid = c.oid) AS subscribes,
    c.relispartition OR EXISTS (SELECT FROM pg_inherits AS i WHERE c.oid IN (i.inhparent, i.inhrelid)) AS inherits,
    coalesce(k.columns, '{}') AS key_columns,
    coalesce(k.condeferrable, false) AS key_deferrable,
    (
        SELECT coalesce(array_agg(a.attname), '{}')
        FROM pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped
    ) AS virtual_columns
FROM unnest($1::text [], $2::text []) AS u (schema_name, table_name)
JOIN pg_namespace AS n ON n.nspname = u.schema_name
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = u.table_name
LEFT JOIN LATERAL (
    SELECT
        p.condeferrable,
        (
            SELECT array_agg(a.attname ORDER BY u.position)
            FROM unnest(p.conkey) WITH ORDINALITY AS u (attnum, position)
            JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = u.attnum
        ) AS columns
    FROM pg_constraint AS p
    WHERE p.conrelid = c.oid AND p.contype = 'p'
) AS k ON true;
