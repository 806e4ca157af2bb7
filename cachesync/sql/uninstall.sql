-- By themselves first, after the functions that depend on them: somebody's views are not for us to drop.
DROP FUNCTION IF EXISTS cachesync.latest_version(text, text), cachesync.mark_published(bigint []);
DROP TABLE IF EXISTS
cachesync.entity, cachesync.change_log, cachesync.dead_letter_action,
cachesync.reconciliation, cachesync.reconciliation_chunk;
DROP SCHEMA IF EXISTS cachesync CASCADE;
DO $cachesync$
BEGIN
    DROP ROLE IF EXISTS cachesync_service;
EXCEPTION
    -- Another database of the same server still uses it, or another user made it.
    WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
END
$cachesync$;
DO $cachesync$
BEGIN
    DROP ROLE IF EXISTS cachesync_worker;
EXCEPTION
    WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
END
$cachesync$;
