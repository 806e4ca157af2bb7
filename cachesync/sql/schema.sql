-- What all entities share. Run by every `cachesync install`, so each statement leaves what is there.

CREATE SCHEMA IF NOT EXISTS cachesync;
COMMENT ON SCHEMA cachesync IS 'db-cache-sync: row versions and the change log';

-- One sequence numbers every change. CACHE 1, so that a session never holds back numbers that it would
-- draw later than another session's higher ones. It starts at the time in milliseconds: after an uninstall
-- and a new install its numbers are still above those that caches may remember.
DO $$
BEGIN
    IF to_regclass('cachesync.row_version') IS NULL THEN
        EXECUTE format(
            'CREATE SEQUENCE cachesync.row_version AS bigint CACHE 1 START %s',
            floor(extract(epoch FROM clock_timestamp()) * 1000)
        );
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS cachesync.entity (
    name text PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    key_column text NOT NULL,
    columns text [] NOT NULL,
    fingerprint text NOT NULL,
    UNIQUE (schema_name, table_name)
);
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

CREATE INDEX IF NOT EXISTS change_log_unpublished ON cachesync.change_log (version) WHERE published_at IS NULL;

-- Trigger functions run with their owner's rights: whoever may write the table needs no other.

CREATE OR REPLACE FUNCTION cachesync.draw_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.row_version := nextval('cachesync.row_version');
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION cachesync.source() RETURNS text
LANGUAGE sql STABLE
RETURN coalesce(nullif(current_setting('cachesync.source', true), ''), session_user::text);

-- The version of the newest change of a key. Read backwards from the newest change of all, which is quick
-- only for what has just been written: a transaction asks it what its own delete drew.
CREATE OR REPLACE FUNCTION cachesync.latest_version(entity text, key text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT l.version
    FROM cachesync.change_log AS l
    WHERE l.entity = latest_version.entity AND l.key = latest_version.key
    ORDER BY l.version DESC
    LIMIT 1;
END;

CREATE OR REPLACE FUNCTION cachesync.mark_published(versions bigint []) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE cachesync.change_log AS l
    SET published_at = clock_timestamp()
    WHERE l.version = ANY(mark_published.versions) AND l.published_at IS NULL;
END;

-- A JSON merge patch, RFC 7396.
CREATE OR REPLACE FUNCTION cachesync.merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
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
$$;

REVOKE ALL ON FUNCTION cachesync.mark_published(bigint []), cachesync.latest_version(text, text) FROM public;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cachesync_service') THEN
        CREATE ROLE cachesync_service NOLOGIN;
    END IF;
END
$$;
COMMENT ON ROLE cachesync_service IS 'What the services of db-cache-sync may touch';
GRANT USAGE ON SCHEMA cachesync TO cachesync_service;
GRANT SELECT ON cachesync.entity TO cachesync_service;
GRANT EXECUTE ON FUNCTION
cachesync.mark_published(bigint []),
cachesync.latest_version(text, text),
cachesync.merge_patch(jsonb, jsonb)
TO cachesync_service;
