-- The last $4 changes of the row with the key $2 of the entity $1, the newest first: among the newest $5 lines of the change
-- log, and among those at the versions $3, wherever they are. There is no index on keys, which every write would have to
-- maintain.
SELECT DISTINCT ON (version)
    CASE WHEN c.keys IS NULL THEN c.version ELSE c.version - cardinality(c.keys) + array_position(c.keys, $2) END AS version,
    CASE WHEN c.operation = 'upserts' THEN 'upsert' ELSE c.operation END AS operation,
    c.source, c.changed_at, c.relay_at, c.published_at, c.keys IS NOT NULL AS shared
FROM (
    (
        SELECT l.version, l.entity, l.key, l.keys, l.operation, l.source, l.changed_at, l.relay_at, l.published_at
        FROM cachesync.change_log AS l
        ORDER BY l.version DESC
        LIMIT $5
    )
    UNION ALL
    -- A line that rows share has the version of the last of them, and up to 100 rows.
    SELECT l.version, l.entity, l.key, l.keys, l.operation, l.source, l.changed_at, l.relay_at, l.published_at
    FROM unnest($3::bigint []) AS u (version)
    CROSS JOIN LATERAL (
        SELECT o.*
        FROM cachesync.change_log AS o
        WHERE o.version >= u.version AND o.version < u.version + 100
        ORDER BY o.version
        LIMIT 1
    ) AS l
) AS c
WHERE
    c.entity = $1
    AND (c.key = $2 OR c.operation = 'truncate' OR (c.keys IS NOT NULL AND array_position(c.keys, $2) IS NOT NULL))
ORDER BY version DESC
LIMIT $4;
