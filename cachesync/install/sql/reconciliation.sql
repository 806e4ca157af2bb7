-- The runs of the reconciliation. Every `cachesync install` executes this script, after `schema.sql`.

CREATE TABLE IF NOT EXISTS cachesync.reconciliation (
    run text PRIMARY KEY,
    parameters jsonb NOT NULL,
    notes text [] NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    report jsonb
);
COMMENT ON TABLE cachesync.reconciliation IS 'The runs of the reconciliation and their reports';

CREATE TABLE IF NOT EXISTS cachesync.reconciliation_chunk (
    run text,
    service text,
    number integer,
    task jsonb NOT NULL,
    cursor numeric(20) NOT NULL,
    findings jsonb NOT NULL DEFAULT '{}',
    finished_at timestamptz,
    PRIMARY KEY (run, service, number)
);
COMMENT ON TABLE cachesync.reconciliation_chunk IS 'The progress and findings of each chunk of a run';

DO $cachesync$
BEGIN
    -- IF NOT EXISTS would wait for every writer before it looks. Lines that were published after a given time are
    -- close together in the log: a few bytes for each 32 pages are enough to find them.
    IF to_regclass('cachesync.change_log_published') IS NULL THEN
        CREATE INDEX change_log_published ON cachesync.change_log USING brin (published_at)
        WITH (pages_per_range = 32, autosummarize = on);
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a
        WHERE a.attrelid = 'cachesync.reconciliation'::regclass AND a.attname = 'link'
    ) THEN
        -- Where people can follow the run.
        ALTER TABLE cachesync.reconciliation ADD COLUMN link text;
    END IF;
END
$cachesync$;

GRANT SELECT, INSERT, UPDATE, DELETE ON cachesync.reconciliation, cachesync.reconciliation_chunk TO cachesync_worker;
