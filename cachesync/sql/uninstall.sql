DROP SCHEMA IF EXISTS cachesync CASCADE;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'cachesync_service') THEN
        DROP OWNED BY cachesync_service;
        -- Another database of the same server may still use the role.
        BEGIN
            DROP ROLE cachesync_service;
        EXCEPTION WHEN dependent_objects_still_exist THEN
            NULL;
        END;
    END IF;
END
$$;
