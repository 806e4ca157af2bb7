-- Removes what `entity.sql` and `version_column.sql` created on a table; some of it may have been dropped already.
DROP VIEW IF EXISTS {{view}};
DROP TRIGGER IF EXISTS zzz_cachesync_version ON {{table}};
DROP TRIGGER IF EXISTS zzz_cachesync_version_update ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_insert ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_update ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_move ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_delete ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_truncate ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_row ON {{table}};
DROP TRIGGER IF EXISTS cachesync_redraw ON {{table}};
DROP POLICY IF EXISTS cachesync_bypass ON {{table}};
REVOKE ALL ON {{table}} FROM cachesync_service;
DO $cachesync$
DECLARE
    part regclass;
    root regclass := coalesce(pg_partition_root({{table_name}}), {{table_name}}::regclass);
BEGIN
    -- Partitions, and former ones, have this trigger of their own.
    FOR part IN
        SELECT g.tgrelid
        FROM pg_trigger AS g
        JOIN pg_proc AS f ON f.oid = g.tgfoid AND f.pronamespace = 'cachesync'::regnamespace
        WHERE g.tgname = 'cachesync_log_truncate' AND f.proname = {{entity}} || '_log_truncate'
    LOOP
        EXECUTE format('DROP TRIGGER cachesync_log_truncate ON %s', part);
    END LOOP;
    -- All partitions of a table have the column, or none.
    IF NOT EXISTS (
        SELECT FROM pg_partition_tree(root) AS p
        JOIN pg_trigger AS g ON g.tgrelid = p.relid AND g.tgname = 'zzz_cachesync_version'
    ) THEN
        EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS row_version', root);
    END IF;
END
$cachesync$;
