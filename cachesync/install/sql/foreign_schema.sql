-- Whether the schema cachesync is somebody else's. An empty one may have been made for us.
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
