-- What ATTACH and DETACH do to a registered table: they change its rows without firing a trigger.

DO $cachesync$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = 'cachesync.entity'::regclass AND a.attname = 'partitions'
    ) THEN
        ALTER TABLE cachesync.entity ADD COLUMN partitions oid [];
        COMMENT ON COLUMN cachesync.entity.partitions IS 'The triggers that its partitions had when they were last looked at';
    END IF;
END
$cachesync$;

-- The row triggers that draw the versions in a partitioned table, one for each of its partitions; null for other tables.
-- PostgreSQL drops that of a partition that is detached, and makes a new one when it is attached again.
CREATE OR REPLACE FUNCTION cachesync.partitions(relation oid) RETURNS oid []
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT array_agg(g.oid ORDER BY g.oid)
    FROM cachesync.partition_tree(partitions.relation) AS t
    JOIN pg_trigger AS g ON g.tgrelid = t.relid AND g.tgname = 'zzz_cachesync_version'
    WHERE EXISTS (SELECT FROM pg_class AS c WHERE c.oid = partitions.relation AND c.relkind = 'p');
END;

-- Whether partitions were attached or detached since the given ones were found, or lack the trigger of a TRUNCATE, which
-- PostgreSQL does not give them.
CREATE OR REPLACE FUNCTION cachesync.partitions_changed(relation oid, known oid []) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT
        partitions_changed.known IS DISTINCT FROM cachesync.partitions(partitions_changed.relation)
        OR partitions_changed.known IS NOT NULL AND EXISTS (
            SELECT FROM cachesync.partition_tree(partitions_changed.relation) AS t
            JOIN pg_class AS c ON c.oid = t.relid AND c.relkind = 'r'
            WHERE NOT EXISTS (
                SELECT FROM pg_trigger AS g WHERE g.tgrelid = t.relid AND g.tgname = 'cachesync_log_truncate'
            )
        );
END;

-- Makes the caches right after partitions of an entity were attached or detached, and gives new ones the trigger of a
-- TRUNCATE. `emptied` is whether all slots of the entity are to be emptied. A partition that has no rows, and its first
-- file, has changed nothing: a TRUNCATE gives it another. `failures` says why partitions have not got the trigger.
CREATE OR REPLACE FUNCTION cachesync.follow_partitions(entity text, OUT emptied boolean, OUT failures text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1500ms' SET row_security = off
AS $cachesync$
DECLARE
    table_name regclass;
    known oid [];
    found oid [];
    part record;
    has_rows boolean;
BEGIN
    SELECT e.relation, e.partitions INTO table_name, known
    FROM cachesync.entity AS e
    WHERE e.name = follow_partitions.entity
    FOR UPDATE;
    -- Partitions that come from here on are found the next time.
    found := cachesync.partitions(table_name);
    emptied := NOT known <@ found;
    FOR part IN
        SELECT g.tgrelid::regclass AS name, u.oid <> ALL(known) AS added
        FROM unnest(found) AS u (oid)
        JOIN pg_trigger AS g ON g.oid = u.oid
        JOIN pg_class AS c ON c.oid = g.tgrelid AND c.relkind = 'r'
        WHERE
            coalesce(u.oid <> ALL(known), true)
            OR NOT EXISTS (
                SELECT FROM pg_trigger AS o WHERE o.tgrelid = g.tgrelid AND o.tgname = 'cachesync_log_truncate'
            )
        ORDER BY added DESC
    LOOP
        BEGIN
            IF known IS NOT NULL THEN
                -- Its rows can have versions that another database has drawn. It may have failed before.
                EXECUTE format('SELECT cachesync.draw_above(max(row_version)) FROM %s', part.name);
            END IF;
            -- Waits for those who write to the partition, so that what they have done is seen here.
            EXECUTE format(
                'CREATE OR REPLACE TRIGGER cachesync_log_truncate AFTER TRUNCATE ON %1$s '
                'FOR EACH STATEMENT EXECUTE FUNCTION cachesync.%2$I();'
                'ALTER TABLE %1$s ENABLE ALWAYS TRIGGER cachesync_log_truncate',
                part.name, follow_partitions.entity || '_log_truncate'
            );
            EXECUTE format('SELECT EXISTS (SELECT FROM %s)', part.name) INTO has_rows;
            emptied := emptied OR has_rows OR pg_relation_filenode(part.name) <> part.name::oid;
        EXCEPTION
            WHEN
                lock_not_available OR deadlock_detected OR insufficient_privilege OR undefined_table
                OR numeric_value_out_of_range
            THEN
                emptied := emptied OR part.added;
                failures := concat_ws('; ', failures, format('partition %s: %s', part.name, SQLERRM));
                -- To wait for one partition is enough for now.
                EXIT WHEN SQLSTATE = '55P03';
        END;
    END LOOP;
    -- A partition keeps this trigger when it is detached.
    FOR part IN
        SELECT g.tgrelid::regclass AS name
        FROM pg_trigger AS g
        JOIN pg_proc AS f ON f.oid = g.tgfoid AND f.pronamespace = 'cachesync'::regnamespace
        WHERE
            g.tgname = 'cachesync_log_truncate' AND f.proname = follow_partitions.entity || '_log_truncate'
            AND g.tgrelid NOT IN (SELECT t.relid FROM cachesync.partition_tree(table_name) AS t)
    LOOP
        BEGIN
            EXECUTE format('DROP TRIGGER cachesync_log_truncate ON %s', part.name);
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected OR insufficient_privilege OR undefined_table THEN NULL;
        END;
    END LOOP;
    -- When it has just been installed, there is nothing to empty.
    emptied := coalesce(emptied AND known IS NOT NULL, false);
    IF emptied THEN
        INSERT INTO cachesync.change_log (version, entity, operation, source)
        VALUES (nextval('cachesync.row_version'), follow_partitions.entity, 'truncate', cachesync.source());
        PERFORM cachesync.announce_change();
    END IF;
    UPDATE cachesync.entity AS e SET partitions = found WHERE e.name = follow_partitions.entity;
END
$cachesync$;

REVOKE ALL ON FUNCTION cachesync.follow_partitions(text) FROM public;
GRANT EXECUTE ON FUNCTION cachesync.follow_partitions(text) TO cachesync_worker;
GRANT EXECUTE ON FUNCTION
cachesync.partitions(oid),
cachesync.partitions_changed(oid, oid [])
TO cachesync_service, cachesync_worker;
