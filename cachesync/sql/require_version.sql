ALTER TABLE {{table}} DROP CONSTRAINT IF EXISTS cachesync_versioned;
ALTER TABLE {{table}} ADD CONSTRAINT cachesync_versioned CHECK (row_version IS NOT NULL) NOT VALID;
