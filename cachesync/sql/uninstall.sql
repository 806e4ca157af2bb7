DROP SCHEMA IF EXISTS cachesync CASCADE;
DO $cachesync$
BEGIN
    DROP ROLE IF EXISTS cachesync_service;
EXCEPTION
    -- Another database of the same server still uses it, or another user made it.
    WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
END
$cachesync$;
