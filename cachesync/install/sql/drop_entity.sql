-- Removes what `entity.sql` and `version_column.sql` created on a table; some of it may have been dropped already.
DROP VIEW IF EXISTS {{view}};
DROP TRIGGER IF EXISTS zzz_cachesync_version ON {{table}};
DROP TRIGGER IF EXISTS zzz_cachesync_version_update ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_insert ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_update ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_move ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_delete ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_truncate ON {{table}};
DROP TRIGGER IF EXISTS cachesync_redraw ON {{table}};
DROP POLICY IF EXISTS cachesync_bypass ON {{table}};
REVOKE ALL ON {{table}} FROM cachesync_service;
ALTER TABLE {{table}} DROP COLUMN IF EXISTS row_version;
