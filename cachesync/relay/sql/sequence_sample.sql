-- The time, the newest row version, the next transaction ID, and the oldest transaction still in progress.
SELECT
    statement_timestamp() AS taken_at,
    s.last_value AS version,
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_transaction,
    pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest_transaction
FROM cachesync.row_version AS s;
