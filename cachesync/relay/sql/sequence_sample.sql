-- The time, the newest row version, the next transaction, and the oldest that is still under way.
SELECT
    statement_timestamp() AS taken_at,
    s.last_value AS version,
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_transaction,
    pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest_transaction
FROM cachesync.row_version AS s;
