-- The unpublished lines to publish next: the oldest, and some of the newest, so that these do not wait behind many
-- older ones. They are locked until the end of the transaction; lines that another relay has locked are skipped.
-- $1 the declared entities, $2 the position of the sweep, $3 the versions to leave out, $4 the maximum number of
-- oldest lines, $5 that of newest lines, $6 the payload size in bytes after which each of the two stops, $7 the size
-- above which a payload cannot be published, $8 the versions that Kafka has rejected before.
--
-- A line that cannot be published as it is, is superseded if a newer one of its key is among these lines. The payload
-- of a line that is too large is not read: octet_length takes the size from the row, not from the payload's separate
-- storage (TOAST).
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
), taken AS (
    SELECT o.*, true AS oldest, row_number() OVER (ORDER BY o.relay_at, o.version) AS place
    FROM oldest AS o
    UNION ALL
    SELECT n.*, false, row_number() OVER (ORDER BY n.relay_at DESC, n.version)
    FROM newest AS n
    WHERE n.version <> ALL(ARRAY(SELECT o.version FROM oldest AS o))
), sized AS (
    SELECT
        t.*,
        coalesce(octet_length(t.payload) > $7, false) AS too_large,
        CASE WHEN octet_length(t.payload) <= $7 THEN octet_length(t.payload) ELSE 0 END AS size
    FROM taken AS t
), lines AS (
    SELECT s.*, sum(s.size) OVER (PARTITION BY s.oldest ORDER BY s.place) - s.size AS before
    FROM sized AS s
), chosen AS (
    SELECT
        l.*,
        (l.too_large OR l.version = ANY($8::bigint []))
        AND l.version < max(l.version) OVER (PARTITION BY l.entity, l.key) AS superseded
    FROM lines AS l
    WHERE l.before < $6
)
SELECT
    c.version, c.entity, c.key, c.operation,
    CASE WHEN NOT c.too_large THEN c.fingerprint END AS fingerprint,
    CASE WHEN NOT c.too_large THEN c.payload END AS payload,
    c.source, c.changed_at, c.relay_at, c.oldest, c.size, c.superseded
FROM chosen AS c
ORDER BY c.oldest DESC, c.place;
