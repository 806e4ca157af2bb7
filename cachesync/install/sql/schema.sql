-- The objects that all entities share. Every `cachesync install` executes this script, so each statement leaves
-- existing objects unchanged.

DO $cachesync$
BEGIN
    -- IF NOT EXISTS would require the privilege to create the schema even if it exists.
    IF to_regnamespace('cachesync') IS NULL THEN
        CREATE SCHEMA cachesync;
        COMMENT ON SCHEMA cachesync IS 'db-cache-sync: row versions and the change log';
    END IF;
END
$cachesync$;

-- One sequence numbers every change. CACHE 1, so that no session reserves numbers that it would use after another
-- session has used higher ones. The sequence starts at the current time in milliseconds, so that after an uninstall
-- and a new install its numbers are still higher than those that caches may remember.
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
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a
        WHERE a.attrelid = 'cachesync.entity'::regclass AND a.attname = 'key_columns'
    ) THEN
        -- Running processes of earlier versions still read key_column, which is the first one.
        ALTER TABLE cachesync.entity ADD COLUMN key_columns text [];
        UPDATE cachesync.entity SET key_columns = ARRAY[key_column];
        ALTER TABLE cachesync.entity ALTER COLUMN key_columns SET NOT NULL;
    END IF;
END
$cachesync$;
COMMENT ON TABLE cachesync.entity IS 'The registered tables, as they were when they were installed';

-- The operation is 'upsert', 'upserts' (of several rows, which share the line), 'delete' or 'truncate'.
CREATE TABLE IF NOT EXISTS cachesync.change_log (
    version bigint PRIMARY KEY,
    entity text NOT NULL,
    key text,
    operation text NOT NULL,
    fingerprint text,
    payload text,
    source text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at timestamptz
);
COMMENT ON TABLE cachesync.change_log IS 'The outbox: every change, written in the transaction that made it';

-- Makes all later changes newer than a version that this database has not drawn. Others can draw versions in the meantime,
-- but not as many as are left out. Of two sessions that do so at the same time, the second must not set the sequence back.
-- Fails for a version that would leave less than half of the numbers.
CREATE OR REPLACE FUNCTION cachesync.draw_above(version bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $cachesync$
BEGIN
    IF version > 4611686018427387904 THEN
        RAISE EXCEPTION 'row_version % is too high', version USING ERRCODE = 'numeric_value_out_of_range';
    END IF;
    PERFORM pg_advisory_xact_lock(1684169587, 2);
    IF version > (SELECT s.last_value FROM cachesync.row_version AS s) THEN
        PERFORM setval('cachesync.row_version', version + 1000000);
    END IF;
END
$cachesync$;

-- Any session can set this to any text, which must fit in a message next to the change.
CREATE OR REPLACE FUNCTION cachesync.source() RETURNS text
LANGUAGE sql STABLE
RETURN coalesce(nullif(left(current_setting('cachesync.source', true), 100), ''), session_user::text);

-- Whether the session publishes its changes itself.
CREATE OR REPLACE FUNCTION cachesync.publishes() RETURNS boolean
LANGUAGE sql STABLE
RETURN coalesce(current_setting('cachesync.source', true), '') <> '';

-- When the relay may take a line. A session that identifies itself publishes its own changes and gets the time to
-- do so.
CREATE OR REPLACE FUNCTION cachesync.relay_at() RETURNS timestamptz
LANGUAGE sql VOLATILE
RETURN clock_timestamp()
+ CASE WHEN current_setting('cachesync.source', true) <> '' THEN interval '2 seconds' ELSE interval '0' END;

-- A relay holds this lock of its session while it sleeps until it is notified. Of several relays that sleep, one holds
-- it, and all are notified.
CREATE OR REPLACE FUNCTION cachesync.fall_asleep() RETURNS boolean
LANGUAGE sql VOLATILE
RETURN pg_try_advisory_lock(1684169587, 1);

CREATE OR REPLACE FUNCTION cachesync.stay_awake() RETURNS boolean
LANGUAGE sql VOLATILE
RETURN pg_advisory_unlock(1684169587, 1);

-- Notifies a sleeping relay of changes that nobody else publishes, once per transaction. NOTIFY takes a lock that all
-- databases of the server share, until the commit is complete, so that nobody is notified while no relay sleeps: none
-- runs, or it is awake and looks for changes every few milliseconds. A lock that a session can share, which it releases
-- at once, is held by no relay. A relay that falls asleep before the transaction commits finds its changes when it next
-- sweeps. The services, which publish their changes, do not notify.
--
-- If a rollback to a savepoint discards the notification, it also resets the setting. PostgreSQL cannot prepare a
-- transaction that notifies, so that databases and roles with two-phase commits turn it off; the relay then finds their
-- changes when it next sweeps. One expression, which becomes part of the expressions that use it.
CREATE OR REPLACE FUNCTION cachesync.announce_change() RETURNS boolean
LANGUAGE sql VOLATILE
RETURN CASE
    WHEN
        coalesce(current_setting('cachesync.source', true), '') = ''
        AND coalesce(current_setting('cachesync.announced', true), '') = ''
        AND coalesce(lower(current_setting('cachesync.notify', true)), '') NOT IN ('off', 'false', 'no', '0')
        AND CASE
            WHEN pg_try_advisory_lock_shared(1684169587, 1) THEN NOT pg_advisory_unlock_shared(1684169587, 1)
            ELSE true
        END
        THEN
            pg_notify('cachesync_change', '') IS NOT NULL
            AND set_config('cachesync.announced', 'on', true) = 'on'
    ELSE false
END;

DO $cachesync$
BEGIN
    -- IF NOT EXISTS and similar clauses would wait for every writer before they look.
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = 'cachesync.change_log'::regclass AND a.attname = 'relay_at'
    ) THEN
        -- A constant, which PostgreSQL stores once for all existing lines.
        ALTER TABLE cachesync.change_log ADD COLUMN relay_at timestamptz NOT NULL DEFAULT '2000-01-01 00:00:00Z';
        ALTER TABLE cachesync.change_log ALTER COLUMN relay_at SET DEFAULT cachesync.relay_at();
        DROP INDEX IF EXISTS cachesync.change_log_unpublished;
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = 'cachesync.change_log'::regclass AND a.attname = 'transaction'
    ) THEN
        -- The transaction and the login that wrote a line. For existing lines constants, as above: no transaction has
        -- the ID 0, and no login has an empty name.
        ALTER TABLE cachesync.change_log
        ADD COLUMN transaction xid8 NOT NULL DEFAULT '0',
        ADD COLUMN login text NOT NULL DEFAULT '';
        ALTER TABLE cachesync.change_log
        ALTER COLUMN transaction SET DEFAULT pg_current_xact_id(),
        ALTER COLUMN login SET DEFAULT session_user;
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = 'cachesync.change_log'::regclass AND a.attname = 'keys'
    ) THEN
        -- The rows that share a line, instead of its key and payload. Their versions are consecutive, and that of the
        -- line is the last one. Not compressed, because the relay soon reads them.
        ALTER TABLE cachesync.change_log
        ADD COLUMN keys text [],
        ADD COLUMN payloads text [],
        ALTER COLUMN keys SET STORAGE EXTERNAL,
        ALTER COLUMN payloads SET STORAGE EXTERNAL;
    END IF;
    IF to_regclass('cachesync.change_log_unpublished') IS NULL THEN
        -- Not on the version: the primary key provides the same order, and the planner could choose that, which leads
        -- through all published lines.
        CREATE INDEX change_log_unpublished ON cachesync.change_log (relay_at) WHERE published_at IS NULL;
    END IF;
    -- Earlier versions checked lines that only the functions below write, and announced them by a trigger. PostgreSQL
    -- compiles constraints and conditions of triggers for every statement.
    IF EXISTS (
        SELECT FROM pg_constraint AS c WHERE c.conrelid = 'cachesync.change_log'::regclass AND c.contype = 'c'
    ) THEN
        ALTER TABLE cachesync.change_log
        DROP CONSTRAINT IF EXISTS change_log_check,
        DROP CONSTRAINT IF EXISTS change_log_check1,
        DROP CONSTRAINT IF EXISTS change_log_operation_check;
    END IF;
    IF EXISTS (
        SELECT FROM pg_trigger AS g WHERE g.tgrelid = 'cachesync.change_log'::regclass AND g.tgname = 'announce'
    ) THEN
        DROP TRIGGER announce ON cachesync.change_log;
        DROP FUNCTION cachesync.announce();
    END IF;
END
$cachesync$;

-- Trigger functions run with the privileges of their owner, so that writers need no privileges but those on the
-- table.

-- The only function that is called once per row. A search_path of its own would slow down a bulk insert by a tenth,
-- and is not needed because every name is qualified with its schema.
CREATE OR REPLACE FUNCTION cachesync.draw_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $cachesync$
BEGIN
    NEW.row_version := pg_catalog.nextval('cachesync.row_version');
    RETURN NEW;
END
$cachesync$;

-- Writes one line for rows with consecutive versions, of which the last is given. The functions of the entities' triggers
-- call it with the privileges of the owner.
CREATE OR REPLACE FUNCTION cachesync.log_upserts(
    last_version bigint, entity text, fingerprint text, keys text [], payloads text []
)
RETURNS void
LANGUAGE plpgsql
AS $cachesync$
BEGIN
    IF pg_catalog.cardinality(keys) OPERATOR(pg_catalog.=) 1 THEN
        INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
        SELECT last_version, entity, keys[1], 'upsert', fingerprint, payloads[1], cachesync.source();
    ELSIF pg_catalog.cardinality(keys) OPERATOR(pg_catalog.>) 1 THEN
        INSERT INTO cachesync.change_log (version, entity, operation, fingerprint, source, keys, payloads)
        SELECT last_version, entity, 'upserts', fingerprint, cachesync.source(), keys, payloads;
    END IF;
END
$cachesync$;

-- Of the keys that were just taken by rows with these versions, those that were deleted later according to the log;
-- null if there are none. The settings leave only a scan of the end of the log and a hash join to the planner, which
-- is fast for few keys and for many.
CREATE OR REPLACE FUNCTION cachesync.overtaken(entity text, keys text [], versions bigint []) RETURNS text []
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_nestloop = off
AS $cachesync$
DECLARE
    lowest bigint := (SELECT min(u.version) FROM unnest(versions) AS u (version));
BEGIN
    -- At any other isolation level, the snapshot can be older than the delete and not show it.
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

-- A table and, if it is partitioned, its partitions on all levels. Unlike pg_partition_tree, it takes no locks. With more
-- rows expected, as by default, whoever joins catalogs to it reads these as a whole.
CREATE OR REPLACE FUNCTION cachesync.partition_tree(relation oid) RETURNS TABLE (relid oid)
LANGUAGE sql STABLE ROWS 10 SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH RECURSIVE tree AS (
        SELECT partition_tree.relation AS relid
        UNION ALL
        SELECT i.inhrelid
        FROM tree AS t
        JOIN pg_class AS c ON c.oid = t.relid AND c.relkind = 'p'
        JOIN pg_inherits AS i ON i.inhparent = t.relid AND NOT i.inhdetachpending
    )
    SELECT t.relid FROM tree AS t;
END;

-- Whether an update of a table, or of one of its partitions, can run code that is not PostgreSQL's or this library's: rules;
-- functions, operators and types (the checks of domains) in triggers, constraints, indexes and generated columns; and
-- indexes of types that are not built in (the difference function of a range). The catalog records no dependency on
-- built-in objects.
CREATE OR REPLACE FUNCTION cachesync.runs_code_of_its_owner(relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT
        EXISTS (SELECT FROM pg_rewrite AS r WHERE r.ev_class = relation)
        OR EXISTS (
            SELECT FROM cachesync.partition_tree(relation) AS t
            JOIN pg_index AS i ON i.indrelid = t.relid
            JOIN pg_attribute AS a ON a.attrelid = i.indexrelid
            WHERE a.atttypid >= 16384
        )
        OR EXISTS (
            WITH parts (catalog, oid, attribute) AS (
                SELECT 'pg_trigger'::regclass, g.oid, NULL::integer
                FROM cachesync.partition_tree(relation) AS t
                JOIN pg_trigger AS g ON g.tgrelid = t.relid
                JOIN pg_proc AS f ON f.oid = g.tgfoid
                WHERE f.pronamespace <> 'cachesync'::regnamespace
                UNION ALL
                SELECT 'pg_constraint'::regclass, c.oid, NULL::integer
                FROM cachesync.partition_tree(relation) AS t
                JOIN pg_constraint AS c ON c.conrelid = t.relid
                UNION ALL
                SELECT 'pg_class'::regclass, i.indexrelid, NULL::integer
                FROM cachesync.partition_tree(relation) AS t
                JOIN pg_index AS i ON i.indrelid = t.relid
                UNION ALL
                SELECT 'pg_attrdef'::regclass, a.oid, NULL::integer
                FROM cachesync.partition_tree(relation) AS t
                JOIN pg_attrdef AS a ON a.adrelid = t.relid
                UNION ALL
                -- In PostgreSQL 14, what a generated column depends on is recorded for the column itself.
                SELECT 'pg_class'::regclass, a.attrelid, a.attnum
                FROM cachesync.partition_tree(relation) AS t
                JOIN pg_attribute AS a ON a.attrelid = t.relid AND a.attgenerated <> ''
            )
            SELECT FROM parts AS p
            JOIN pg_depend AS d ON d.classid = p.catalog AND d.objid = p.oid
            WHERE (p.attribute IS NULL OR d.objsubid = p.attribute) AND d.refclassid IN (
                'pg_proc'::regclass, 'pg_operator'::regclass, 'pg_opclass'::regclass, 'pg_type'::regclass
            )
        );
END;

-- The version of the newest change of a key that this transaction has made; null if it has made none. Reads only the
-- lines that were written since the transaction began, and the sum prevents the planner from reading the log backwards
-- instead, which would not end if there is no such line.
CREATE OR REPLACE FUNCTION cachesync.latest_version(entity text, key text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
BEGIN ATOMIC
    SELECT max(l.version + 0)
    FROM cachesync.change_log AS l
    WHERE
        l.published_at IS NULL AND l.relay_at >= transaction_timestamp() AND l.transaction = pg_current_xact_id()
        AND l.entity = latest_version.entity AND l.key = latest_version.key;
END;

-- The changes that a transaction of this login has made: the present one so far, or one that has been committed. After
-- `max_lines` lines, there is only one 'rest' for each entity, with the version of its last change. Payloads are left out as
-- soon as the lines before them, and their own, have `payload_bytes`. `began` is when the transaction began.
--
-- If its lines are `unpublished`, as those of the present transaction are, they are in the relay's index, and due since it
-- began. If they may have been published, all lines of higher versions are looked at: a line that is older than the beginning
-- of the transaction has a lower version than all of its lines. This passes over the lines that others have not committed yet
-- one by one, which can be a million.
--
-- Planning takes longer than the query, so that it is planned once per session, which functions in SQL are not.
DROP FUNCTION IF EXISTS
cachesync.own_changes(xid8, timestamptz, bigint, bigint),
cachesync.transaction_changes(xid8, timestamptz, bigint, bigint);
CREATE OR REPLACE FUNCTION cachesync.transaction_changes(
    made_by xid8, began timestamptz, unpublished boolean, max_lines bigint, payload_bytes bigint
)
RETURNS TABLE (
    version bigint, entity text, key text, operation text, fingerprint text, payload text, source text,
    changed_at timestamptz
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $cachesync$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH own AS (
        SELECT l.*
        FROM cachesync.change_log AS l
        WHERE
            transaction_changes.unpublished
            AND l.published_at IS NULL AND l.relay_at >= transaction_changes.began
            AND l.transaction = transaction_changes.made_by AND l.login = session_user
        UNION ALL
        SELECT l.*
        FROM cachesync.change_log AS l
        WHERE
            NOT transaction_changes.unpublished
            AND l.version > coalesce((
                SELECT o.version
                FROM cachesync.change_log AS o
                WHERE o.changed_at < transaction_changes.began
                ORDER BY o.version DESC
                LIMIT 1
            ), 0)
            AND l.transaction = transaction_changes.made_by AND l.login = session_user
    ), lines AS (
        SELECT o.*, row_number() OVER (ORDER BY o.version) AS number
        FROM own AS o
    )
    SELECT
        m.version - coalesce(cardinality(m.keys) - r.position, 0), m.entity, coalesce(m.key, r.key),
        CASE WHEN m.keys IS NULL THEN m.operation ELSE 'upsert' END, m.fingerprint,
        CASE
            WHEN
                sum(octet_length(coalesce(m.payload, r.payload))) OVER (ORDER BY m.number, r.position)
                <= transaction_changes.payload_bytes
                THEN coalesce(m.payload, r.payload)
        END,
        m.source, m.changed_at
    FROM lines AS m
    LEFT JOIN LATERAL unnest(m.keys, m.payloads) WITH ORDINALITY AS r (key, payload, position) ON true
    WHERE m.number <= transaction_changes.max_lines
    UNION ALL
    -- With names and types, so that a restored dump has the very same text.
    SELECT
        max(m.version) AS version, m.entity, NULL::text AS key, 'rest'::text AS operation, NULL::text AS fingerprint,
        NULL::text AS payload, min(m.source) AS source, max(m.changed_at) AS changed_at
    FROM lines AS m
    WHERE m.number > transaction_changes.max_lines
    GROUP BY m.entity;
END
$cachesync$;

-- The same for the present transaction, as its last statement. What is deferred to the commit runs now, with the privileges
-- and the search_path of the caller, so that its changes are known too. A serializable transaction that reads the end of the
-- log would conflict with every writer: its only line says 'later', with the transaction and the time when it began, to be
-- looked up after the commit.
--
-- Only the first statement of a transaction has the time of its beginning. Then it is not in the transaction that it is asked
-- for: that one has ended, or the client commits each statement.
CREATE OR REPLACE FUNCTION cachesync.final_changes(max_lines bigint, payload_bytes bigint)
RETURNS TABLE (
    version bigint, entity text, key text, operation text, fingerprint text, payload text, source text,
    changed_at timestamptz
)
LANGUAGE plpgsql
AS $cachesync$
DECLARE
    made_by pg_catalog.xid8 := pg_catalog.pg_current_xact_id_if_assigned();
    began pg_catalog.timestamptz := pg_catalog.transaction_timestamp();
BEGIN
    IF pg_catalog.statement_timestamp() OPERATOR(pg_catalog.=) began THEN
        RAISE EXCEPTION 'the statement is not part of a transaction' USING ERRCODE = 'CS004';
    END IF;
    IF made_by IS NULL THEN
        RETURN;
    END IF;
    SET CONSTRAINTS ALL IMMEDIATE;
    IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=) 'serializable' THEN
        RETURN QUERY SELECT
            NULL::pg_catalog.int8, NULL::pg_catalog.text, made_by::pg_catalog.text, 'later'::pg_catalog.text,
            NULL::pg_catalog.text, NULL::pg_catalog.text, NULL::pg_catalog.text, began;
    ELSE
        RETURN QUERY SELECT c.* FROM cachesync.transaction_changes(made_by, began, true, max_lines, payload_bytes) AS c;
    END IF;
END
$cachesync$;

-- The version that a write of a row has drawn. Fails if it has drawn none that is higher: the triggers that make every
-- change known are missing or disabled, or the sequence was set back, so that no cache would follow.
CREATE OR REPLACE FUNCTION cachesync.drawn(old_version bigint, new_version bigint) RETURNS bigint
LANGUAGE plpgsql
AS $cachesync$
BEGIN
    IF new_version > coalesce(old_version, 0) THEN
        RETURN new_version;
    END IF;
    RAISE EXCEPTION 'the write drew no row version' USING ERRCODE = 'CS001';
END
$cachesync$;

-- The key of a row that was inserted. Fails if there is none, so that what the trigger that has discarded the row did
-- is undone too.
CREATE OR REPLACE FUNCTION cachesync.kept(key text) RETURNS text
LANGUAGE plpgsql
AS $cachesync$
BEGIN
    IF key IS NULL THEN
        RAISE EXCEPTION 'a trigger of the table discarded the new row' USING ERRCODE = 'CS003';
    END IF;
    RETURN key;
END
$cachesync$;

-- A payload that a service may write. Fails if it is larger than that.
CREATE OR REPLACE FUNCTION cachesync.bounded(payload text, bytes integer) RETURNS text
LANGUAGE plpgsql
AS $cachesync$
BEGIN
    IF octet_length(payload) > bytes THEN
        RAISE EXCEPTION '% bytes', octet_length(payload) USING ERRCODE = 'CS002';
    END IF;
    RETURN payload;
END
$cachesync$;

-- The rows of a query, up to a number of them or until their payloads have a size. If other rows follow, the last one has
-- no payload. $1 of the query is the key, $2 the number of rows.
CREATE OR REPLACE FUNCTION cachesync.page(query text, after text, rows integer, bytes bigint)
RETURNS TABLE (key text, version bigint, payload text)
LANGUAGE plpgsql STABLE
AS $cachesync$
DECLARE
    returned integer := 0;
    returned_bytes bigint := 0;
BEGIN
    FOR key, version, payload IN EXECUTE query USING after, rows + 1 LOOP
        IF returned = rows OR returned_bytes >= bytes THEN
            payload := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
        RETURN NEXT;
        returned := returned + 1;
        returned_bytes := returned_bytes + octet_length(payload);
    END LOOP;
END
$cachesync$;

-- A service marks only the lines that its own login wrote; the background work marks all lines. A line that rows share
-- is left to the relay, because some of them may not have been published. Uses the primary key, whatever the statistics
-- are. With IS NULL, the planner could instead read all unpublished lines, which can be a million after a bulk change.
CREATE OR REPLACE FUNCTION cachesync.mark_published(versions bigint []) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
BEGIN ATOMIC
    UPDATE cachesync.change_log AS l
    SET published_at = clock_timestamp()
    WHERE
        l.version = ANY(mark_published.versions) AND l.operation <> 'upserts'
        AND coalesce(l.published_at, '-infinity') = '-infinity'
        AND (l.login = session_user OR (SELECT pg_has_role(session_user, 'cachesync_worker', 'MEMBER')));
END;

-- Marks changes as unpublished again. A line that rows share is replaced by one for each row, because Kafka may reject
-- some of them for good. The relay calls it for lines that it has locked.
CREATE OR REPLACE FUNCTION cachesync.unpublish(versions bigint []) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
AS $cachesync$
BEGIN
    WITH shared AS (
        DELETE FROM cachesync.change_log AS l
        WHERE
            l.operation = 'upserts'
            -- Lines do not overlap: a version that has no line of its own is in the next one.
            AND l.version = ANY(ARRAY(
                SELECT (SELECT min(o.version) FROM cachesync.change_log AS o WHERE o.version >= u.version)
                FROM unnest(versions) AS u (version)
            ))
        RETURNING l.*
    )
    INSERT INTO cachesync.change_log (
        version, entity, key, operation, fingerprint, payload, source, changed_at, relay_at, transaction, login,
        published_at
    )
    SELECT
        s.version - cardinality(s.keys) + r.position, s.entity, r.key, 'upsert', s.fingerprint, r.payload, s.source,
        s.changed_at, s.relay_at, s.transaction, s.login, s.published_at
    FROM shared AS s
    CROSS JOIN unnest(s.keys, s.payloads) WITH ORDINALITY AS r (key, payload, position);
    UPDATE cachesync.change_log AS l SET published_at = NULL WHERE l.version = ANY(versions);
END
$cachesync$;

-- The JSON of a row with types whose text depends on the search_path or the locale of the session. The services' own
-- sessions keep their search_path, on which functions of triggers may rely.
CREATE OR REPLACE FUNCTION cachesync.row_to_json("row" record) RETURNS json
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off SET lc_monetary FROM CURRENT
AS $cachesync$
BEGIN
    RETURN row_to_json("row");
END
$cachesync$;

-- Whether a default, a constraint or a domain calls a function, by its name or as an operator, that can write rows. One
-- that is not volatile has promised not to.
CREATE OR REPLACE FUNCTION cachesync.can_write(catalog oid, object oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce(bool_or((
        SELECT f.provolatile = 'v' AND l.lanname NOT IN ('c', 'internal')
        FROM pg_proc AS f
        JOIN pg_language AS l ON l.oid = f.prolang
        WHERE
            f.oid = CASE
                WHEN d.refclassid = 'pg_proc'::regclass THEN d.refobjid
                ELSE (SELECT o.oprcode FROM pg_operator AS o WHERE o.oid = d.refobjid)
            END
    )), false)
    FROM pg_depend AS d
    WHERE
        d.classid = can_write.catalog AND d.objid = can_write.object
        AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass);
END;

-- Whether a default or a CHECK of a domain can write rows, in a type of the user's or in one that it is made of. Writes
-- call it, so that the catalogs are not joined, as in `spreads.sql`, and every name is qualified with its schema.
CREATE OR REPLACE FUNCTION cachesync.type_can_write(type oid) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $cachesync$
DECLARE
    t pg_catalog.pg_type;
BEGIN
    -- Built-in types run no code of the user's.
    IF type < 16384 THEN
        RETURN false;
    END IF;
    SELECT y.* INTO t FROM pg_catalog.pg_type AS y WHERE y.oid = type;
    CASE
        WHEN t.typtype = 'd' THEN
            RETURN cachesync.can_write('pg_catalog.pg_type'::regclass, t.oid) OR EXISTS (
                SELECT FROM pg_catalog.pg_constraint AS c
                WHERE c.contypid = t.oid AND cachesync.can_write('pg_catalog.pg_constraint'::regclass, c.oid)
            ) OR cachesync.type_can_write(t.typbasetype);
        WHEN t.typtype = 'c' THEN
            RETURN EXISTS (
                SELECT FROM pg_catalog.pg_attribute AS a
                WHERE
                    a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
                    AND cachesync.type_can_write(a.atttypid)
            );
        WHEN t.typcategory = 'A' THEN
            RETURN cachesync.type_can_write(t.typelem);
        WHEN t.typtype IN ('r', 'm') THEN
            RETURN EXISTS (
                SELECT FROM pg_catalog.pg_range AS r
                WHERE t.oid IN (r.rngtypid, r.rngmultitypid) AND cachesync.type_can_write(r.rngsubtype)
            );
        ELSE
            RETURN false;
    END CASE;
END
$cachesync$;

-- Applies a JSON merge patch (RFC 7396).
CREATE OR REPLACE FUNCTION cachesync.merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
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

-- A user who could create a trigger with the first function on a table of their own could exhaust the numbers.
REVOKE ALL ON FUNCTION
cachesync.draw_version(),
cachesync.log_upserts(bigint, text, text, text [], text []),
cachesync.overtaken(text, text [], bigint []),
cachesync.mark_published(bigint []),
cachesync.unpublish(bigint []),
cachesync.latest_version(text, text),
cachesync.transaction_changes(xid8, timestamptz, boolean, bigint, bigint)
FROM public;

DO $cachesync$
DECLARE
    needed record;
BEGIN
    FOR needed IN
        VALUES
        ('cachesync_service', 'The privileges of the services of db-cache-sync'),
        ('cachesync_worker', 'The privileges of the background work of db-cache-sync')
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = needed.column1) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', needed.column1);
                EXECUTE format('COMMENT ON ROLE %I IS %L', needed.column1, needed.column2);
            EXCEPTION
                -- Roles belong to the server: an installation in another database has just created it.
                WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;
END
$cachesync$;
GRANT USAGE ON SCHEMA cachesync TO cachesync_service, cachesync_worker;
GRANT SELECT ON cachesync.entity TO cachesync_service, cachesync_worker;
GRANT SELECT, UPDATE (published_at), DELETE ON cachesync.change_log TO cachesync_worker;
GRANT SELECT ON SEQUENCE cachesync.row_version TO cachesync_service, cachesync_worker;
GRANT EXECUTE ON FUNCTION
cachesync.mark_published(bigint []),
cachesync.partition_tree(oid),
cachesync.row_to_json(record)
TO cachesync_service, cachesync_worker;
GRANT EXECUTE ON FUNCTION
cachesync.stay_awake(),
cachesync.fall_asleep(),
cachesync.unpublish(bigint [])
TO cachesync_worker;
GRANT EXECUTE ON FUNCTION
cachesync.latest_version(text, text),
cachesync.transaction_changes(xid8, timestamptz, boolean, bigint, bigint),
cachesync.final_changes(bigint, bigint),
cachesync.drawn(bigint, bigint),
cachesync.bounded(text, integer),
cachesync.kept(text),
cachesync.page(text, text, integer, bigint),
cachesync.merge_patch(jsonb, jsonb),
cachesync.can_write(oid, oid),
cachesync.type_can_write(oid)
TO cachesync_service;
