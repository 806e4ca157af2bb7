-- The unpublished lines to publish next: the oldest, and some of the newest, so that these do not wait behind many
-- older ones. They are locked until the end of the transaction; lines that another relay has locked are skipped.
-- $1 the declared entities, $2 the position of the sweep, $3 the versions to leave out, $4 the maximum number of
-- oldest lines, $5 that of newest lines, $6 the payload size in bytes after which each of the two stops.
WITH oldest AS MATERIALIZED (
    SELECT l.*
    FROM cachesync.change_log AS l
    WHERE
        l.published_at IS NULL AND l.relay_at >= $2 AND l.relay_at <= statement_timestamp()
        AND l.entity = ANY($1::text []) AND l.version <> ALL($3::bigint [])
    ORDER BY l.relay_at
    LIMIT $4
    FOR UPDATE SKIP LOCKED
), newest AS MATERIALIZED (
    SELECT l.*
    FROM cachesync.change_log AS l
    WHERE
        l.published_at IS NULL AND l.relay_at >= $2 AND l.relay_at <= statement_timestamp()
        AND l.entity = ANY($1::text []) AND l.version <> ALL($3::bigint [])
    ORDER BY l.relay_at DESC
    LIMIT $5
    FOR UPDATE SKIP LOCKED
), lines AS (
    SELECT
        o.*, true AS oldest,
        sum(octet_length(o.payload)) OVER (ORDER BY o.relay_at, o.version) - octet_length(o.payload) AS before
    FROM oldest AS o
    UNION ALL
    SELECT
        n.*, false,
        sum(octet_length(n.payload)) OVER (ORDER BY n.relay_at DESC, n.version) - octet_length(n.payload)
    FROM newest AS n
)
SELECT l.version, l.entity, l.key, l.operation, l.fingerprint, l.payload, l.source, l.changed_at, l.relay_at, l.oldest
FROM lines AS l
WHERE l.before IS NULL OR l.before < $6;
