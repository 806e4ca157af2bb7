-- The functions and triggers of one entity. They are statement triggers with transition tables, so that a bulk
-- change pays for all its rows at once. A session keeps the plans of a function from its first statement, which
-- may change one row, for later statements, which may change a million. So no query here may have a plan that is
-- fast only for few rows, or only for many.
--
-- The functions that every write calls set no search_path, which would cost each call time. They need none: every name,
-- operator and type has its schema.

-- Draws the version of an updated row, and logs the delete of its old key if it got another one. Only a row trigger sees
-- both keys of a row without a join, which every bulk update would pay for, and a WHEN clause would be compiled for every
-- statement.
CREATE OR REPLACE FUNCTION {{draw_update}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $cachesync$
BEGIN
    NEW.row_version := pg_catalog.nextval('cachesync.row_version');
    -- PL/pgSQL shows a generated column of the new row as null here. Such a key counts as changed, unless the row only
    -- draws again.
    IF
        {{key_changes}}
        OR {{key_is_unknown}}
        AND coalesce(pg_catalog.current_setting('cachesync.moved', true), '') OPERATOR(pg_catalog.<>) 'off'
    THEN
        PERFORM pg_catalog.set_config('cachesync.moved', 'on', true);
        INSERT INTO cachesync.change_log (version, entity, key, operation, source)
        SELECT
            pg_catalog.nextval('cachesync.row_version'), {{entity}}, {{key_before}}, 'delete', cachesync.source();
    END IF;
    RETURN NEW;
END
$cachesync$;

CREATE OR REPLACE FUNCTION {{log_insert}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER {{settings}}
AS $cachesync$
DECLARE
    lowest pg_catalog.int8;
    highest pg_catalog.int8;
    drawn pg_catalog.int8;
BEGIN
    -- An insert draws its number before its uniqueness check, which can then wait for a delete of the same key
    -- that draws a higher one. This is only possible if others have drawn since this statement's first number.
    SELECT pg_catalog.min(n.row_version), pg_catalog.max(n.row_version), pg_catalog.count(*)
    INTO lowest, highest, drawn
    FROM new_rows AS n;
    IF
        highest OPERATOR(pg_catalog.-) lowest OPERATOR(pg_catalog.+) 1::pg_catalog.int8 OPERATOR(pg_catalog.<>) drawn
        OR highest OPERATOR(pg_catalog.<>) pg_catalog.pg_sequence_last_value('cachesync.row_version')
    THEN
        PERFORM {{redraw}}(
            pg_catalog.array_agg({{key_of_new}}), pg_catalog.array_agg(n.row_version)
        )
        FROM new_rows AS n;
    END IF;
    {{log_new_rows}}
    RETURN NULL;
END
$cachesync$;

CREATE OR REPLACE FUNCTION {{log_update}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER {{settings}}
AS $cachesync$
BEGIN
    IF pg_catalog.current_setting('cachesync.moved', true) OPERATOR(pg_catalog.=) 'on' THEN
        PERFORM {{keep_moved}}(pg_catalog.min(n.row_version)) FROM new_rows AS n;
        -- A row that got its key by an update has waited for that key as an insert would.
        PERFORM {{redraw}}(
            pg_catalog.array_agg({{key_of_new}}), pg_catalog.array_agg(n.row_version)
        )
        FROM new_rows AS n;
    END IF;
    {{log_new_rows}}
    RETURN NULL;
END
$cachesync$;

-- Removes the deletes of this transaction from the log, from a version on, whose keys have new rows: a statement can give
-- one row the key that it takes from another. Only an old snapshot still shows a row with a lower version. The subquery is
-- executed for each of the deletes: as a join, it could be a scan of the whole table.
CREATE OR REPLACE FUNCTION {{keep_moved}}(lowest bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
AS $cachesync$
BEGIN
    -- At any other isolation level, these rows draw again anyway (`overtaken`), and a serializable transaction that reads
    -- the end of the log would conflict with every writer.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RETURN;
    END IF;
    DELETE FROM cachesync.change_log AS l
    WHERE
        l.version > $1 AND l.entity = {{entity}} AND l.operation = 'delete'
        AND l.transaction = pg_current_xact_id()
        AND (
            SELECT bool_or(t.row_version >= $1) FROM {{table}} AS t WHERE {{has_key_of_line}}
        );
END
$cachesync$;

-- The settings leave only the index of the key to the planner, which is fast for any number of rows.
CREATE OR REPLACE FUNCTION {{log_delete}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $cachesync$
BEGIN
    -- One statement can delete a row and insert its key again (WITH ... DELETE); the insert is then the change.
    -- A row with a lower version no longer exists: only a snapshot older than its deletion still shows it.
    INSERT INTO cachesync.change_log (version, entity, key, operation, source)
    SELECT nextval('cachesync.row_version'), {{entity}}, {{key_of_old}}, 'delete', cachesync.source()
    FROM old_rows AS o
    WHERE NOT EXISTS (
        SELECT FROM {{table}} AS t WHERE {{has_key_of_old}} AND t.row_version > o.row_version
    );
    PERFORM cachesync.announce_change();
    RETURN NULL;
END
$cachesync$;

CREATE OR REPLACE FUNCTION {{log_truncate}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $cachesync$
BEGIN
    INSERT INTO cachesync.change_log (version, entity, operation, source)
    VALUES (nextval('cachesync.row_version'), {{entity}}, 'truncate', cachesync.source());
    PERFORM cachesync.announce_change();
    RETURN NULL;
END
$cachesync$;

{{redraw_functions}}
-- A user who could create triggers with these functions on a table of their own could write anything into the log.
REVOKE ALL ON FUNCTION
{{draw_update}}(), {{log_insert}}(), {{log_update}}(), {{log_delete}}(), {{log_truncate}}(),
{{keep_moved}}(bigint), {{redraw}}(text [], bigint []), {{redraw_as_writer}}()
FROM public;

-- Triggers that were renamed, or that an earlier version made, would log changes twice.
DO $cachesync$
DECLARE
    renamed text;
BEGIN
    FOR renamed IN
        SELECT g.tgname
        FROM pg_trigger AS g
        JOIN pg_proc AS f ON f.oid = g.tgfoid
        WHERE
            g.tgrelid = {{table_name}}::regclass AND f.pronamespace = 'cachesync'::regnamespace
            AND g.tgname NOT IN (
                'zzz_cachesync_version', 'zzz_cachesync_version_update', 'cachesync_log_insert',
                'cachesync_log_update', 'cachesync_log_delete', 'cachesync_log_truncate', 'cachesync_redraw'
            )
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', renamed, {{table_name}}::regclass);
    END LOOP;
END
$cachesync$;

-- Earlier versions logged moves by a trigger for each row, or by comparing the old rows with the table.
DROP FUNCTION IF EXISTS {{log_move}}(), {{log_moves}}(text [], bigint []);

-- Triggers fire in the order of their names. As the last ones, these triggers see the row as the others have changed
-- it, and the others can compare the old row with the new one before its version changes.
CREATE OR REPLACE TRIGGER zzz_cachesync_version BEFORE INSERT ON {{table}}
FOR EACH ROW EXECUTE FUNCTION cachesync.draw_version();

CREATE OR REPLACE TRIGGER zzz_cachesync_version_update BEFORE UPDATE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION {{draw_update}}();

CREATE OR REPLACE TRIGGER cachesync_log_insert AFTER INSERT ON {{table}}
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_insert}}();

CREATE OR REPLACE TRIGGER cachesync_log_update AFTER UPDATE ON {{table}}
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_update}}();

CREATE OR REPLACE TRIGGER cachesync_log_delete AFTER DELETE ON {{table}}
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_delete}}();

CREATE OR REPLACE TRIGGER cachesync_log_truncate AFTER TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION {{log_truncate}}();

-- Its name makes it fire after the triggers that find out which rows must draw again.
CREATE OR REPLACE TRIGGER cachesync_redraw AFTER INSERT OR UPDATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION {{redraw_as_writer}}();

-- Tools that load or replicate tables set session_replication_role = replica, which skips triggers that are not
-- ALWAYS.
ALTER TABLE {{table}}
ENABLE ALWAYS TRIGGER zzz_cachesync_version,
ENABLE ALWAYS TRIGGER zzz_cachesync_version_update,
ENABLE ALWAYS TRIGGER cachesync_log_insert,
ENABLE ALWAYS TRIGGER cachesync_log_update,
ENABLE ALWAYS TRIGGER cachesync_log_delete,
ENABLE ALWAYS TRIGGER cachesync_log_truncate,
ENABLE ALWAYS TRIGGER cachesync_redraw;

{{shown}}
