-- Changes the row $1 of the hidden entity, and returns its version, without an entity; and the newest changes after version
-- $2, at most $3. Of rows that share a line, the last one stands for the others.
WITH changed AS (
    UPDATE cachesync.canary AS c
    SET changed_at = clock_timestamp()
    WHERE c.id = $1
    RETURNING c.row_version
)
SELECT c.row_version AS version, NULL AS entity, NULL AS key, NULL AS operation
FROM changed AS c
UNION ALL
(
    SELECT l.version, l.entity, coalesce(l.key, l.keys[cardinality(l.keys)]), l.operation
    FROM cachesync.change_log AS l
    WHERE l.version > $2 AND l.entity <> 'cachesync_canary' AND l.operation <> 'truncate'
    ORDER BY l.version DESC
    LIMIT $3
);
