-- What the server is, and what its settings allow. Every login can execute it, also on a replica.
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::integer / 10000 AS major,
    pg_is_in_recovery() AS is_replica,
    extract(epoch FROM clock_timestamp())::float AS clock,
    current_setting('autovacuum')::boolean AS autovacuum,
    current_setting('max_prepared_transactions')::integer AS prepared_transactions,
    coalesce(current_setting('cachesync.notify', true), '') = 'off' AS notify_is_off,
    current_setting('max_locks_per_transaction')::integer * (
        current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer
    ) AS locks,
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees_sessions;
