-- The properties that determine whether tables can be registered: their own, and those of their partitions. $1 their schemas, $2 their names. No row for a
-- table that does not exist.
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name,
    c.relkind AS kind,
    c.relispartition AS is_partition,
    t.unlogged,
    t.foreign_partitions,
    EXISTS (
        SELECT FROM pg_class AS r WHERE r.oid = coalesce(pg_partition_root(c.oid), c.oid) AND r.reloftype <> 0
    ) AS typed,
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
        SELECT coalesce(array_agg(DISTINCT g.tgname), '{}')
        FROM unnest(t.relations) AS u (oid)
        JOIN pg_trigger AS g ON g.tgrelid = u.oid
        JOIN pg_proc AS f ON f.oid = g.tgfoid
        JOIN pg_namespace AS s ON s.oid = f.pronamespace
        WHERE
            g.tgname > 'zzz_cachesync_version' AND g.tgenabled <> 'D'
            -- 1 is the bit of FOR EACH ROW, 2 that of BEFORE, 4 and 16 are those of INSERT and UPDATE.
            AND g.tgtype & 3 = 3 AND g.tgtype & 20 <> 0 AND s.nspname <> 'cachesync'
    ) AS late_triggers,
    EXISTS (SELECT FROM pg_subscription_rel AS s WHERE s.srrelid = ANY(t.relations)) AS subscribes,
    c.relkind <> 'p' AND NOT c.relispartition AND EXISTS (
        SELECT FROM pg_inherits AS i WHERE c.oid IN (i.inhparent, i.inhrelid)
    ) AS inherits,
    coalesce(k.columns, '{}') AS key_columns,
    coalesce(k.condeferrable, false) AS key_deferrable,
    coalesce(k.incomplete, false) AS key_incomplete,
    (
        SELECT coalesce(jsonb_agg(i.columns), '[]')::text
        FROM (
            SELECT jsonb_agg(a.attname) AS columns
            FROM pg_index AS x
            CROSS JOIN unnest(x.indkey) WITH ORDINALITY AS u (attnum, position)
            JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = u.attnum
            WHERE
                x.indrelid = c.oid AND x.indisunique AND x.indisvalid AND NOT x.indisexclusion
                AND x.indpred IS NULL AND x.indexprs IS NULL
                -- The others are only included in the index.
                AND u.position <= x.indnkeyatts
            GROUP BY x.indexrelid
        ) AS i
    ) AS unique_columns,
    (
        SELECT coalesce(array_agg(a.attname), '{}')
        FROM pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped
    ) AS virtual_columns
FROM unnest($1::text [], $2::text []) AS u (schema_name, table_name)
JOIN pg_namespace AS n ON n.nspname = u.schema_name
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = u.table_name
CROSS JOIN LATERAL (
    WITH RECURSIVE tree AS (
        SELECT c.oid, c.relkind, c.relpersistence
        UNION ALL
        SELECT d.oid, d.relkind, d.relpersistence
        FROM tree AS a
        JOIN pg_inherits AS i ON i.inhparent = a.oid
        JOIN pg_class AS d ON d.oid = i.inhrelid
        WHERE a.relkind = 'p'
    )
    SELECT
        array_agg(a.oid) AS relations,
        -- A partitioned table stores nothing.
        bool_or(a.relpersistence = 'u' AND a.relkind = 'r') AS unlogged,
        coalesce(
            array_agg(a.oid::regclass::text) FILTER (WHERE a.relkind = 'f' AND a.oid <> c.oid), '{}'
        ) AS foreign_partitions
    FROM tree AS a
) AS t
LEFT JOIN LATERAL (
    SELECT
        p.condeferrable,
        -- ALTER TABLE ONLY does not give it to the partitions.
        (SELECT NOT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = p.conindid) AS incomplete,
        (
            SELECT array_agg(a.attname ORDER BY u.position)
            FROM unnest(p.conkey) WITH ORDINALITY AS u (attnum, position)
            JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = u.attnum
        ) AS columns
    FROM pg_constraint AS p
    WHERE p.conrelid = c.oid AND p.contype = 'p'
) AS k ON true;
