-- What the live check sees. Every `cachesync install` executes this script, after `schema.sql`.

-- The table of the hidden entity, of which the live check changes one row per second. Several rows, so that several
-- partitions of its topic are used. Their keys differ from those of any other database, whose changes can be in the same topic.
CREATE TABLE IF NOT EXISTS cachesync.canary (
    id bigint PRIMARY KEY,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE cachesync.canary IS 'The rows that the live check changes to see whether the caches follow';
INSERT INTO cachesync.canary (id)
SELECT b.base + n.number
FROM (SELECT floor(random() * 1e15)::bigint * 8) AS b (base), generate_series(0, 7) AS n (number)
WHERE NOT EXISTS (SELECT FROM cachesync.canary);

-- `judged` and `seen` count changes at 0.1, 1, 5 and 30 s after they were made; `lags` counts those that took at most 0.01,
-- 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60 and 300 s, and the others.
CREATE TABLE IF NOT EXISTS cachesync.consistency (
    minute timestamptz,
    service text,
    entity text,
    judged bigint [] NOT NULL,
    seen bigint [] NOT NULL,
    lags bigint [] NOT NULL,
    hits bigint NOT NULL,
    misses bigint NOT NULL,
    bypasses bigint NOT NULL,
    PRIMARY KEY (minute, service, entity)
);
COMMENT ON TABLE cachesync.consistency IS 'How many changes the caches had in time, and how reads were answered';

CREATE TABLE IF NOT EXISTS cachesync.cache_state (
    service text PRIMARY KEY,
    checked_at timestamptz NOT NULL,
    redis text NOT NULL CHECK (redis IN ('ok', 'refuses writes', 'unavailable')),
    problem text,
    oldest_unseen_at timestamptz,
    oldest_unseen_entity text,
    oldest_unseen_key text,
    oldest_unseen_version bigint,
    keys bigint,
    memory bigint
);
COMMENT ON TABLE cachesync.cache_state IS 'Each cache as it was at the last look of the live check';

CREATE TABLE IF NOT EXISTS cachesync.capture_state (
    entity text PRIMARY KEY,
    checked_at timestamptz NOT NULL,
    problem text
);
COMMENT ON TABLE cachesync.capture_state IS 'Whether the triggers of each entity fire';

CREATE TABLE IF NOT EXISTS cachesync.violation (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    service text NOT NULL,
    entity text NOT NULL,
    key text NOT NULL,
    version bigint NOT NULL,
    committed_at timestamptz NOT NULL,
    noticed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL CHECK (kind IN ('behind', 'stale', 'false absent', 'unreadable')),
    found jsonb NOT NULL,
    seen_at timestamptz
);
COMMENT ON TABLE cachesync.violation IS 'The slots that were not right five seconds after a change';

GRANT SELECT, UPDATE ON cachesync.canary TO cachesync_worker;
GRANT SELECT, INSERT, UPDATE, DELETE
ON cachesync.consistency, cachesync.cache_state, cachesync.capture_state, cachesync.violation
TO cachesync_worker;
