-- Takes the unpublished lines to publish next: the oldest, and some of the newest that are not shared by rows, so that a
-- single change does not wait behind a bulk change. Until the next vacuum, the index still contains lines that have been
-- published, so the newest are only looked for among those of the last two seconds. The lines are marked as published,
-- and locked, until the transaction ends: the relay commits once Kafka has acknowledged them. Lines that another relay
-- has locked are skipped.
-- $1 the declared entities, $2 the position of the sweep, $3 the versions to leave out, $4 the maximum number of
-- oldest lines, $5 that of newest lines, $6 the payload size in bytes after which each of the two stops, $7 the size
-- above which a payload cannot be published, $8 the versions that Kafka has rejected before.
--
-- The result has one row for each entity, with the keys, values and times, in milliseconds, of the upserts that can be
-- published as they are, and one row for each other line. `newest` is set if Kafka may not accept a line: it is the
-- highest version of the line's key among these lines. Each row has the position at which the sweep continues, or null
-- if it is complete. Payloads that are too large or that are not needed yet are not read: octet_length and pg_column_size
-- take the size from the row, not from the payload's separate storage (TOAST).
WITH oldest AS MATERIALIZED (
    SELECT
        l.ctid AS place, l.relay_at, l.version, octet_length(l.payload) AS bytes,
        pg_column_size(l.payloads) AS shared_bytes
    FROM cachesync.change_log AS l
    WHERE
        l.published_at IS NULL AND l.relay_at >= $2 AND l.relay_at <= statement_timestamp()
        AND l.entity = ANY($1::text []) AND l.version <> ALL($3::bigint [])
    ORDER BY l.relay_at
    LIMIT $4
    FOR UPDATE SKIP LOCKED
), newest AS MATERIALIZED (
    SELECT
        l.ctid AS place, l.relay_at, l.version, octet_length(l.payload) AS bytes,
        pg_column_size(l.payloads) AS shared_bytes
    FROM cachesync.change_log AS l
    WHERE
        l.published_at IS NULL
        AND l.operation <> 'upserts'
        AND l.relay_at >= statement_timestamp() - interval '2 seconds' AND l.relay_at <= statement_timestamp()
        AND l.entity = ANY($1::text []) AND l.version <> ALL($3::bigint [])
    ORDER BY l.relay_at DESC
    LIMIT $5
    FOR UPDATE SKIP LOCKED
), found AS MATERIALIZED (
    SELECT
        f.place, f.relay_at, f.version, f.oldest,
        -- Also of rows that share a line, a round must not take more than the producer's queue holds: at most 100 of
        -- them count as at least 512 bytes each.
        CASE WHEN f.bytes > $7 THEN 0 ELSE coalesce(f.bytes, greatest(f.shared_bytes, 51200), 0) END AS size
    FROM (
        SELECT o.*, true AS oldest FROM oldest AS o
        UNION ALL
        SELECT n.*, false FROM newest AS n
    ) AS f
), sized AS MATERIALIZED (
    SELECT
        f.place, f.relay_at, f.oldest,
        sum(f.size) OVER (ORDER BY f.relay_at, f.version ROWS UNBOUNDED PRECEDING) - f.size AS before
    FROM found AS f
    WHERE f.oldest
    UNION ALL
    SELECT
        f.place, f.relay_at, f.oldest,
        sum(f.size) OVER (ORDER BY f.relay_at DESC, f.version ROWS UNBOUNDED PRECEDING) - f.size
    FROM found AS f
    WHERE NOT f.oldest
), reached AS MATERIALIZED (
    SELECT
        CASE
            WHEN count(*) = $4 OR bool_or(s.before >= $6)
                THEN max(s.relay_at) FILTER (WHERE s.before < $6)
        END AS position
    FROM sized AS s
    WHERE s.oldest
), marked AS MATERIALIZED (
    UPDATE cachesync.change_log AS l SET published_at = clock_timestamp()
    WHERE l.ctid = ANY(ARRAY(SELECT s.place FROM sized AS s WHERE s.before < $6))
    RETURNING
        l.version, l.entity, l.key, l.operation, l.source, l.changed_at,
        coalesce(octet_length(l.payload) > $7, false) AS too_large,
        l.version = ANY($8::bigint []) AS rejected,
        CASE WHEN l.operation = 'upserts' OR octet_length(l.payload) <= $7 THEN l.fingerprint END AS fingerprint,
        CASE WHEN octet_length(l.payload) <= $7 THEN l.payload END AS payload,
        l.keys, l.payloads
), rows AS (
    SELECT m.entity, m.key, m.version, m.fingerprint, m.payload, m.changed_at
    FROM marked AS m
    WHERE m.payload IS NOT NULL AND NOT m.rejected
    UNION ALL
    SELECT m.entity, r.key, m.version - cardinality(m.keys) + r.position, m.fingerprint, r.payload, m.changed_at
    FROM marked AS m
    CROSS JOIN unnest(m.keys, m.payloads) WITH ORDINALITY AS r (key, payload, position)
    WHERE m.operation = 'upserts'
), values AS (
    SELECT
        r.entity, r.key,
        convert_to('V' || lpad(r.version::text, 19, '0') || r.fingerprint || r.payload, 'UTF8') AS value,
        -- Floating-point numbers are precise enough for microseconds, and much faster than numeric ones. The addend is
        -- larger than their error.
        floor(date_part('epoch', r.changed_at) * 1000 + 0.0005)::bigint AS milliseconds
    FROM rows AS r
)
SELECT
    (SELECT r.position FROM reached AS r) AS position,
    v.entity, array_agg(v.key) AS keys, array_agg(v.value) AS values, array_agg(v.milliseconds) AS times,
    NULL::bigint AS version, NULL AS key, NULL AS operation, NULL AS fingerprint, NULL AS payload, NULL AS source,
    NULL::timestamptz AS changed_at, NULL::bigint AS newest
FROM values AS v
GROUP BY v.entity
UNION ALL
SELECT
    (SELECT r.position FROM reached AS r), m.entity, NULL, NULL, NULL,
    m.version, m.key, m.operation, m.fingerprint, m.payload, m.source, m.changed_at,
    CASE
        WHEN m.too_large OR m.rejected
            THEN greatest(
                (SELECT max(o.version) FROM marked AS o WHERE o.entity = m.entity AND o.key = m.key),
                (SELECT max(o.version) FROM rows AS o WHERE o.entity = m.entity AND o.key = m.key)
            )
    END
FROM marked AS m
WHERE m.operation <> 'upserts' AND (m.payload IS NULL OR m.rejected);
