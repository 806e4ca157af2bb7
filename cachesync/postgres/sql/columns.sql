-- Every column of a table, with the properties that determine its valid values. Domains are resolved to their
-- base type. $1 schema, $2 table.
WITH RECURSIVE resolved AS (
    SELECT a.attnum, a.atttypid AS type_oid, a.atttypmod AS modifier, a.attnotnull AS not_null
    FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT r.attnum, t.typbasetype, t.typtypmod, r.not_null OR t.typnotnull
    FROM resolved AS r
    JOIN pg_type AS t ON t.oid = r.type_oid
    WHERE t.typtype = 'd'
)
SELECT
    a.attname AS name,
    format_type(a.atttypid, a.atttypmod) AS declared_type,
    t.typname AS base_type,
    (SELECT s.nspname FROM pg_namespace AS s WHERE s.oid = t.typnamespace) AS type_schema,
    t.typcategory AS category,
    NOT r.not_null AS nullable,
    a.atthasdef OR a.attidentity <> '' OR declared.typdefault IS NOT NULL AS has_default,
    a.attgenerated <> '' OR a.attidentity = 'a' AS generated,
    CASE WHEN t.typname IN ('varchar', 'bpchar') AND r.modifier > 4 THEN r.modifier - 4 END AS max_length,
    CASE WHEN t.typname = 'numeric' AND r.modifier >= 4 THEN ((r.modifier - 4) >> 16) & 65535 END AS precision,
    -- The scale is a signed 11-bit field: numeric(3, -2) stores hundreds.
    CASE WHEN t.typname = 'numeric' AND r.modifier >= 4 THEN (((r.modifier - 4) & 2047) # 1024) - 1024 END AS scale,
    (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = t.oid) AS labels,
    coalesce(l.collisdeterministic, true) AS deterministic,
    parts.session_text,
    parts.own_cast,
    EXISTS (SELECT FROM pg_cast AS s WHERE t.typtype = 'e' AND t.oid IN (s.castsource, s.casttarget)) AS cast_enum
FROM resolved AS r
JOIN pg_type AS t ON t.oid = r.type_oid AND t.typtype <> 'd'
JOIN pg_class AS c ON c.relname = $2
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = $1
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = r.attnum
JOIN pg_type AS declared ON declared.oid = a.atttypid
LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
CROSS JOIN LATERAL (
    -- The type and all types that are part of it.
    WITH RECURSIVE parts AS (
        SELECT a.atttypid AS oid
        UNION
        SELECT x.oid
        FROM parts AS p
        JOIN pg_type AS e ON e.oid = p.oid
        CROSS JOIN LATERAL (
            SELECT e.typbasetype
            UNION ALL
            SELECT e.typelem
            UNION ALL
            SELECT m.atttypid
            FROM pg_attribute AS m
            WHERE m.attrelid = e.typrelid AND m.attnum > 0 AND NOT m.attisdropped
            UNION ALL
            SELECT g.rngsubtype FROM pg_range AS g WHERE e.oid IN (g.rngtypid, g.rngmultitypid)
        ) AS x (oid)
    )
    SELECT
        coalesce(bool_or(
            -- Names of objects are qualified as the search_path requires, and quoted as quote_all_identifiers says.
            (e.typnamespace = 'pg_catalog'::regnamespace AND (e.typname ~ '^reg' OR e.typname = 'money'))
            OR f.oid IS NOT NULL
        ), false) AS session_text,
        min(f.oid::regproc::text) FILTER (WHERE g.lanname NOT IN ('c', 'internal')) AS own_cast
    FROM parts AS p
    JOIN pg_type AS e ON e.oid = p.oid
    LEFT JOIN pg_cast AS s ON s.castsource = e.oid AND s.casttarget = 'json'::regtype
    LEFT JOIN pg_proc AS f ON f.oid = s.castfunc AND f.pronamespace <> 'pg_catalog'::regnamespace
    LEFT JOIN pg_language AS g ON g.oid = f.prolang
) AS parts
ORDER BY a.attnum;
