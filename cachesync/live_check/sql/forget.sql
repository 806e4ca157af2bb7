-- Removes what was known of services ($1) and entities ($2) that are no longer declared.
WITH caches AS (
    DELETE FROM cachesync.cache_state AS c WHERE c.service <> ALL($1::text [])
), violations AS (
    UPDATE cachesync.violation AS v
    SET seen_at = clock_timestamp()
    WHERE v.seen_at IS NULL AND (v.service <> ALL($1::text []) OR v.entity <> ALL($2::text []))
)
DELETE FROM cachesync.capture_state AS s WHERE s.entity <> ALL($2::text []);
