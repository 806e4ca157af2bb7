-- First without CASCADE, after the functions that depend on the tables, so that views of others are not dropped.
DROP FUNCTION IF EXISTS
cachesync.latest_version(text, text),
cachesync.transaction_changes(xid8, timestamptz, boolean, bigint, bigint),
cachesync.mark_published(bigint []),
cachesync.unpublish(bigint []);
DROP TABLE IF EXISTS
cachesync.entity, cachesync.change_log, cachesync.dead_letter_action,
cachesync.reconciliation, cachesync.reconciliation_chunk,
cachesync.canary, cachesync.consistency, cachesync.cache_state, cachesync.capture_state, cachesync.violation;
DROP SCHEMA IF EXISTS cachesync CASCADE;
DO $cachesync$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY '{cachesync_service, cachesync_worker}'::text [] LOOP
        BEGIN
            EXECUTE format('DROP ROLE IF EXISTS %I', role);
        EXCEPTION
            -- Another database of the same server still uses it, or another user created it.
            WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
        END;
    END LOOP;
END
$cachesync$;
