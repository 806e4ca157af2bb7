-- What all entities share. Run by every `cachesync install`, so each statement leaves what is there.

DO $cachesync$
BEGIN
    -- Not IF NOT EXISTS, which asks for the right to create it even where it is there.
    IF to_regnamespace('cachesync') IS NULL THEN
        CREATE SCHEMA cachesync;
        COMMENT ON SCHEMA cachesync IS 'db-cache-sync: row versions and the change log';
    END IF;
END
$cachesync$;

-- One sequence numbers every change. CACHE 1, so that a session never holds back numbers that it would
-- draw later than another session's higher ones. It starts at the time in milliseconds: after an uninstall
-- and a new install its numbers are still above those that caches may remember.
DO $cachesync$
BEGIN
    IF to_regclass('cachesync.row_version') IS NULL THEN
        EXECUTE format(
            'CREATE SEQUENCE cachesync.row_version AS bigint CACHE 1 START %s',
            floor(extract(epoch FROM clock_timestamp()) * 1000)
        );
    END IF;
END
$cachesync$;

CREATE TABLE IF NOT EXISTS cachesync.entity (
    name text PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    key_column text NOT NULL,
    columns text [] NOT NULL,
    fingerprint text NOT NULL,
    definition text NOT NULL,
    installation bigint NOT NULL,
    UNIQUE (schema_name, table_name)
);
DO $cachesync$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a
        WHERE a.attrelid = 'cachesync.entity'::regclass AND a.attname = 'installation'
    ) THEN
        ALTER TABLE cachesync.entity ADD COLUMN installation bigint NOT NULL DEFAULT 0;
        ALTER TABLE cachesync.entity ALTER COLUMN installation DROP DEFAULT;
    END IF;
END
$cachesync$;
COMMENT ON TABLE cachesync.entity IS 'The registered tables, as they were when installed';

CREATE TABLE IF NOT EXISTS cachesync.change_log (
    version bigint PRIMARY KEY,
    entity text NOT NULL,
    key text CHECK (key IS NOT NULL OR operation = 'truncate'),
    operation text NOT NULL CHECK (operation IN ('upsert', 'delete', 'truncate')),
    fingerprint text,
    payload text CHECK ((payload IS NULL) = (operation <> 'upsert')),
    source text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at timestamptz
);
COMMENT ON TABLE cachesync.change_log IS 'The outbox: every change, written in its own transaction';

CREATE OR REPLACE FUNCTION cachesync.source() RETURNS text
LANGUAGE sql STABLE
RETURN coalesce(nullif(current_setting('cachesync.source', true), ''), session_user::text);

-- When the relay may take a line. Who names itself publishes its changes by itself and gets the time to do so.
CREATE OR REPLACE FUNCTION cachesync.relay_at() RETURNS timestamptz
LANGUAGE sql VOLATILE
RETURN clock_timestamp()
+ CASE WHEN current_setting('cachesync.source', true) <> '' THEN interval '2 seconds' ELSE interval '0' END;

-- Tells the relay of changes that nobody else publishes, once in a transaction. The setting goes with the
-- savepoint that takes the notification back.
CREATE OR REPLACE FUNCTION cachesync.announce() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $cachesync$
BEGIN
    PERFORM pg_notify('cachesync_change', ''), set_config('cachesync.announced', 'on', true);
    RETURN NULL;
END
$cachesync$;

DO $cachesync$
BEGIN
    -- No IF NOT EXISTS and the like here, which wait for every writer before they look.
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = 'cachesync.change_log'::regclass AND a.attname = 'relay_at'
    ) THEN
        -- A constant, which is kept once for all the lines that are there.
        ALTER TABLE cachesync.change_log ADD COLUMN relay_at timestamptz NOT NULL DEFAULT '2000-01-01 00:00:00Z';
        ALTER TABLE cachesync.change_log ALTER COLUMN relay_at SET DEFAULT cachesync.relay_at();
        DROP INDEX IF EXISTS cachesync.change_log_unpublished;
    END IF;
    IF to_regclass('cachesync.change_log_unpublished') IS NULL THEN
        -- By another column than the primary key: both would do for the order of versions, and the planner
        -- might take the one that leads through all that is published.
        CREATE INDEX change_log_unpublished ON cachesync.change_log (relay_at) WHERE published_at IS NULL;
    END IF;
    -- NOTIFY takes a lock that all databases of the server share until the commit is done. The services,
    -- whose commits are many, do not pay for it.
    IF NOT EXISTS (
        SELECT FROM pg_trigger AS g WHERE g.tgrelid = 'cachesync.change_log'::regclass AND g.tgname = 'announce'
    ) THEN
        CREATE TRIGGER announce AFTER INSERT ON cachesync.change_log
        FOR EACH STATEMENT
        WHEN (
            coalesce(current_setting('cachesync.source', true), '') = ''
            AND coalesce(current_setting('cachesync.announced', true), '') = ''
        )
        EXECUTE FUNCTION cachesync.announce();
        ALTER TABLE cachesync.change_log ENABLE ALWAYS TRIGGER announce;
    END IF;
END
$cachesync$;

-- Trigger functions run with their owner's rights: whoever may write the table needs no other.

-- Of all functions the one called once per row: a search_path of its own would cost a tenth of a bulk
-- insert, and it looks nothing up by a name without its schema.
CREATE OR REPLACE FUNCTION cachesync.draw_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $cachesync$
BEGIN
    NEW.row_version := pg_catalog.nextval('cachesync.row_version');
    RETURN NEW;
END
$cachesync$;

-- Those of the keys, just taken by rows with these versions, that the log says were deleted later; null
-- where there are none. The settings leave it the log's end and a hash: quick for few keys and for many.
CREATE OR REPLACE FUNCTION cachesync.overtaken(entity text, keys text [], versions bigint []) RETURNS text []
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_nestloop = off
AS $cachesync$
DECLARE
    lowest bigint := (SELECT min(u.version) FROM unnest(versions) AS u (version));
BEGIN
    -- The snapshot of any other isolation level may be older than the delete, and so not show it.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RETURN keys;
    END IF;
    RETURN (
        SELECT array_agg(DISTINCT u.key)
        FROM unnest(keys, versions) AS u (key, version)
        JOIN cachesync.change_log AS l ON l.key = u.key AND l.version > u.version
        WHERE l.version > lowest AND l.entity = overtaken.entity AND l.operation = 'delete'
    );
END
$cachesync$;

-- The version of the newest change of a key. Read backwards from the newest change of all, which is quick
-- only for what has just been written: a transaction asks it what its own delete drew.
CREATE OR REPLACE FUNCTION cachesync.latest_version(entity text, key text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
BEGIN ATOMIC
    SELECT l.version
    FROM cachesync.change_log AS l
    WHERE l.entity = latest_version.entity AND l.key = latest_version.key
    ORDER BY l.version DESC
    LIMIT 1;
END;

-- By the primary key, whatever the statistics say. Of an IS NULL the planner would conclude that it may read
-- all that is unpublished instead, of a bulk change a million lines.
CREATE OR REPLACE FUNCTION cachesync.mark_published(versions bigint []) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
BEGIN ATOMIC
    UPDATE cachesync.change_log AS l
    SET published_at = clock_timestamp()
    WHERE l.version = ANY(mark_published.versions) AND coalesce(l.published_at, '-infinity') = '-infinity';
END;

-- A JSON merge patch, RFC 7396.
CREATE OR REPLACE FUNCTION cachesync.merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $cachesync$
BEGIN
    IF jsonb_typeof(patch) IS DISTINCT FROM 'object' THEN
        RETURN patch;
    END IF;
    RETURN (
        SELECT coalesce(jsonb_object_agg(member, merged), '{}')
        FROM (
            SELECT
                member,
                CASE WHEN p.value IS NULL THEN t.value ELSE cachesync.merge_patch(t.value, p.value) END AS merged
            FROM jsonb_each(CASE WHEN jsonb_typeof(target) = 'object' THEN target ELSE '{}' END) AS t (member, value)
            FULL JOIN jsonb_each(patch) AS p (member, value) USING (member)
            WHERE p.value IS DISTINCT FROM 'null'
        ) AS members
    );
END
$cachesync$;

-- Who may make a trigger of the first on a table of their own could use up the numbers.
REVOKE ALL ON FUNCTION
cachesync.draw_version(),
cachesync.overtaken(text, text [], bigint []),
cachesync.mark_published(bigint []),
cachesync.latest_version(text, text)
FROM public;

DO $cachesync$
DECLARE
    needed record;
BEGIN
    FOR needed IN
        VALUES
        ('cachesync_service', 'What the services of db-cache-sync may touch'),
        ('cachesync_worker', 'What the background work of db-cache-sync may touch')
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = needed.column1) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', needed.column1);
                EXECUTE format('COMMENT ON ROLE %I IS %L', needed.column1, needed.column2);
            EXCEPTION
                -- Roles are the server's: an installation in another database was a moment earlier.
                WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;
END
$cachesync$;
GRANT USAGE ON SCHEMA cachesync TO cachesync_service, cachesync_worker;
GRANT SELECT ON cachesync.entity TO cachesync_service, cachesync_worker;
GRANT SELECT, UPDATE (published_at), DELETE ON cachesync.change_log TO cachesync_worker;
GRANT SELECT ON SEQUENCE cachesync.row_version TO cachesync_worker;
GRANT EXECUTE ON FUNCTION cachesync.mark_published(bigint []) TO cachesync_service, cachesync_worker;
GRANT EXECUTE ON FUNCTION
cachesync.latest_version(text, text),
cachesync.merge_patch(jsonb, jsonb)
TO cachesync_service;
