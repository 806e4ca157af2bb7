-- Looks whether the triggers of the entities $1 are there and fire always, and returns what is wrong, and the schema
-- fingerprint of each entity. The relay compares everything else that was installed.
WITH found AS (
    SELECT
        d.name AS entity, e.fingerprint,
        CASE
            WHEN e.name IS NULL THEN 'it is not installed'
            WHEN c.oid IS NULL THEN 'its table was dropped'
            ELSE (
                SELECT string_agg(
                    format(
                        '%s %s', t.name,
                        CASE g.tgenabled
                            WHEN 'D' THEN 'is disabled'
                            WHEN 'O' THEN 'does not fire if session_replication_role is replica'
                            WHEN 'R' THEN 'fires only if session_replication_role is replica'
                            ELSE 'is missing'
                        END
                    ),
                    '; ' ORDER BY t.name
                )
                FROM jsonb_object_keys(e.objects) AS t (name)
                LEFT JOIN pg_trigger AS g ON g.tgrelid = e.relation AND g.tgname = substr(t.name, length('trigger ') + 1)
                WHERE
                    t.name LIKE 'trigger %' AND t.name NOT LIKE '% of partition %'
                    AND g.tgenabled IS DISTINCT FROM 'A'
            )
        END AS problem
    FROM unnest($1::text []) AS d (name)
    LEFT JOIN cachesync.entity AS e ON e.name = d.name
    LEFT JOIN pg_class AS c ON c.oid = e.relation
), noted AS (
    INSERT INTO cachesync.capture_state (entity, checked_at, problem)
    SELECT f.entity, clock_timestamp(), f.problem
    FROM found AS f
    ON CONFLICT (entity) DO UPDATE SET checked_at = excluded.checked_at, problem = excluded.problem
)
SELECT f.entity, f.problem, f.fingerprint FROM found AS f;
