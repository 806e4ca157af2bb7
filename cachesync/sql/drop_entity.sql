-- Takes away what `entity.sql` made, and the row version.
DROP VIEW IF EXISTS {{view}};
DROP TRIGGER IF EXISTS cachesync_version ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_insert ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_update ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_delete ON {{table}};
DROP TRIGGER IF EXISTS cachesync_log_truncate ON {{table}};
DROP FUNCTION IF EXISTS {{log_insert}}(), {{log_update}}(), {{log_delete}}(), {{log_truncate}}();
REVOKE ALL ON {{table}} FROM cachesync_service;
ALTER TABLE {{table}} DROP COLUMN IF EXISTS row_version;
DELETE FROM cachesync.entity WHERE name = {{entity}};
DELETE FROM cachesync.change_log WHERE entity = {{entity}};
