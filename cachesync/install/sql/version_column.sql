-- The rows that are there share one number, drawn before any that a change of them will draw. Being a
-- constant, it is kept once for the table: no row is written, and no other trigger of the table fires.
DO $cachesync$
BEGIN
    EXECUTE format(
        $alter$ALTER TABLE {{table}} ADD COLUMN row_version bigint NOT NULL DEFAULT %s$alter$,
        nextval('cachesync.row_version')
    );
END
$cachesync$;
ALTER TABLE {{table}} ALTER COLUMN row_version DROP DEFAULT;
COMMENT ON COLUMN {{table}}.row_version IS 'Written by db-cache-sync: grows with every change of the row';
