-- Numbers the rows of a table from now on. Adding a column without a default rewrites nothing.
ALTER TABLE {{table}} ADD COLUMN IF NOT EXISTS row_version bigint;
COMMENT ON COLUMN {{table}}.row_version IS 'Written by db-cache-sync: grows with every change of the row';

CREATE OR REPLACE TRIGGER cachesync_version BEFORE INSERT OR UPDATE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION cachesync.draw_version();
