-- Whether there is a schema cachesync of another program. An empty schema does not count: an administrator can have
-- created it for db-cache-sync.
SELECT
    EXISTS (
        SELECT FROM pg_class AS c WHERE c.relnamespace = to_regnamespace('cachesync')
        UNION ALL
        SELECT FROM pg_proc AS f WHERE f.pronamespace = to_regnamespace('cachesync')
    )
    AND 3 > (
        SELECT count(*)
        FROM pg_class AS c
        WHERE
            c.relnamespace = to_regnamespace('cachesync')
            AND c.relname IN ('change_log', 'entity', 'row_version')
    );
