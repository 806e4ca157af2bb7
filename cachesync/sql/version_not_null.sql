ALTER TABLE {{table}} ALTER COLUMN row_version SET NOT NULL;
ALTER TABLE {{table}} DROP CONSTRAINT cachesync_versioned;
