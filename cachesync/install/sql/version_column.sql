-- The existing rows share one number, which is lower than any that a later change of them draws. Because it is a
-- constant, PostgreSQL stores it once for the table: no row is written, and no other trigger of the table fires.
DO $cachesync$
BEGIN
    EXECUTE format(
        'ALTER TABLE %s ADD COLUMN row_version bigint NOT NULL DEFAULT %s',
        {{table_name}}, nextval('cachesync.row_version')
    );
END
$cachesync$;
ALTER TABLE {{table}} ALTER COLUMN row_version SET DEFAULT 0;
COMMENT ON COLUMN {{table}}.row_version IS 'Written by db-cache-sync: increases with every change of the row';
