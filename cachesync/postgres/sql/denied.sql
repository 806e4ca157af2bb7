-- The privileges that this login lacks of those that a service needs, by entity. See `grant.sql` and `uses.sql`.
SELECT
    e.name,
    quote_ident(current_user) AS login,
    string_agg(format('%s on %s', d.privileges, d.object), ', ' ORDER BY d.object) AS denied
FROM cachesync.entity AS e
CROSS JOIN LATERAL (
    SELECT
        format('table %I.%I', e.schema_name, e.table_name) AS object,
        string_agg(DISTINCT p.privilege, ' and ') AS privileges
    FROM (
        SELECT p.privilege
        FROM pg_attribute AS a
        CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p (privilege)
        WHERE
            a.attrelid = e.relation AND NOT a.attisdropped
            AND (
                a.attname = ANY(e.columns)
                OR a.attname = 'row_version' AND p.privilege <> 'INSERT'
                OR a.attname = 'tableoid' AND p.privilege = 'SELECT' AND e.partitions IS NOT NULL
            )
            AND NOT has_column_privilege(e.relation, a.attnum, p.privilege)
        UNION ALL
        SELECT 'DELETE' WHERE NOT has_table_privilege(e.relation, 'DELETE')
    ) AS p
    HAVING count(*) > 0
    UNION ALL
    SELECT format('function cachesync.%I', f.proname), 'EXECUTE'
    FROM pg_proc AS f
    WHERE
        f.pronamespace = 'cachesync'::regnamespace
        AND f.proname IN (
            'bounded', 'can_write', 'drawn', 'final_changes', 'kept', 'latest_version', 'mark_published', 'merge_patch',
            'page', 'read_rows', 'row_to_json', 'transaction_changes', 'type_can_write'
        )
        AND NOT has_function_privilege(f.oid, 'EXECUTE')
    UNION ALL
    SELECT format('schema %I', n.nspname), 'USAGE'
    FROM pg_namespace AS n
    WHERE
        n.oid IN (
            SELECT c.relnamespace FROM pg_class AS c WHERE c.oid = e.relation
            UNION ALL
            SELECT t.typnamespace
            FROM pg_attribute AS a
            JOIN pg_type AS t ON t.oid = a.atttypid
            WHERE a.attrelid = e.relation AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            (
                -- A row is found by its key through the types that domains are over.
                WITH RECURSIVE key_types AS (
                    SELECT a.atttypid AS oid
                    FROM pg_attribute AS a
                    WHERE a.attrelid = e.relation AND a.attname = ANY(e.key_columns)
                    UNION ALL
                    SELECT t.typbasetype
                    FROM key_types AS k
                    JOIN pg_type AS t ON t.oid = k.oid AND t.typtype = 'd'
                )
                SELECT t.typnamespace FROM key_types AS k JOIN pg_type AS t ON t.oid = k.oid
            )
        )
        AND NOT has_schema_privilege(n.oid, 'USAGE')
    UNION ALL
    SELECT format('sequence %I.%I', n.nspname, s.relname), 'USAGE'
    FROM pg_attrdef AS f
    JOIN pg_depend AS d
        ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
    JOIN pg_class AS s ON s.oid = d.refobjid
    JOIN pg_namespace AS n ON n.oid = s.relnamespace
    -- For a table, the function fails.
    WHERE f.adrelid = e.relation AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE') END
) AS d
-- Services do not use the hidden entity of the live check.
WHERE e.schema_name <> 'cachesync'
GROUP BY e.name;
