-- The functions and triggers of one entity. They are statement triggers with transition tables, so that a bulk
-- change pays for all its rows at once. A session keeps the plans of a function from its first statement, which
-- may change one row, for later statements, which may change a million. So no query here may have a plan that is
-- fast only for few rows, or only for many.

CREATE OR REPLACE FUNCTION {{log_insert}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp {{settings}}
AS $cachesync$
DECLARE
    lowest bigint;
    highest bigint;
    drawn bigint;
BEGIN
    -- An insert draws its number before its uniqueness check, which can then wait for a delete of the same key
    -- that draws a higher one. This is only possible if others have drawn since this statement's first number.
    SELECT min(n.row_version), max(n.row_version), count(*) INTO lowest, highest, drawn FROM new_rows AS n;
    IF highest - lowest + 1 <> drawn OR highest <> pg_sequence_last_value('cachesync.row_version') THEN
        PERFORM {{redraw}}(array_agg(n.{{key}}::text), array_agg(n.row_version)) FROM new_rows AS n;
    END IF;
    INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
    SELECT n.row_version, {{entity}}, n.{{key}}::text, 'upsert', {{fingerprint}}, {{new_payload}}, cachesync.source()
    FROM new_rows AS n;
    RETURN NULL;
END
$cachesync$;

CREATE OR REPLACE FUNCTION {{log_update}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp {{settings}}
AS $cachesync$
BEGIN
    -- A row that got its key by an update has waited for that key as an insert would.
    IF current_setting('cachesync.moved', true) = 'on' THEN
        PERFORM {{redraw}}(array_agg(n.{{key}}::text), array_agg(n.row_version)) FROM new_rows AS n;
    END IF;
    INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
    SELECT n.row_version, {{entity}}, n.{{key}}::text, 'upsert', {{fingerprint}}, {{new_payload}}, cachesync.source()
    FROM new_rows AS n;
    RETURN NULL;
END
$cachesync$;

-- Fires for each row whose key was changed. From then on, `log_update` checks every row that this transaction
-- updates: a statement trigger could only find out which rows got another key by a join, which every bulk update
-- would pay for.
CREATE OR REPLACE FUNCTION {{log_move}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $cachesync$
BEGIN
    PERFORM set_config('cachesync.moved', 'on', true);
    INSERT INTO cachesync.change_log (version, entity, key, operation, source)
    SELECT nextval('cachesync.row_version'), {{entity}}, OLD.{{key}}::text, 'delete', cachesync.source()
    WHERE NOT EXISTS (
        SELECT FROM {{table}} AS t WHERE t.{{key}} = OLD.{{key}} AND t.row_version > OLD.row_version
    );
    RETURN NULL;
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
    SELECT nextval('cachesync.row_version'), {{entity}}, o.{{key}}::text, 'delete', cachesync.source()
    FROM old_rows AS o
    WHERE NOT EXISTS (
        SELECT FROM {{table}} AS t WHERE t.{{key}} = o.{{key}} AND t.row_version > o.row_version
    );
    RETURN NULL;
END
$cachesync$;

CREATE OR REPLACE FUNCTION {{log_truncate}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $cachesync$
BEGIN
    INSERT INTO cachesync.change_log (version, entity, operation, source)
    VALUES (nextval('cachesync.row_version'), {{entity}}, 'truncate', cachesync.source());
    RETURN NULL;
END
$cachesync$;

-- Makes a row draw again if, according to the log, its key was deleted after the row drew its number: the key now
-- belongs to this transaction. The trigger of the update logs these rows.
--
-- The update fires the other triggers of the table, whose functions may rely on a search_path. They get the
-- search_path of the user who ran the installation, as if that user had made the update. With the caller's own,
-- they could run functions of the caller with the privileges of that user.
CREATE OR REPLACE FUNCTION {{redraw}}(keys text [], versions bigint []) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $cachesync$
DECLARE
    overtaken text [] := cachesync.overtaken({{entity}}, keys, versions);
    lowest bigint;
    highest bigint;
    moved text := pg_catalog.current_setting('cachesync.moved', true);
    lagging boolean;
BEGIN
    IF overtaken IS NULL THEN
        RETURN;
    END IF;
    SELECT pg_catalog.min(u.version), pg_catalog.max(u.version) INTO lowest, highest
    FROM pg_catalog.unnest(versions) AS u (version);
    -- None of these rows gets its key by this update.
    PERFORM pg_catalog.set_config('cachesync.moved', 'off', true);
    -- EXECUTE makes a plan for the actual number of keys. The drawn number replaces the 0, which differs from the
    -- old version so that a trigger that suppresses redundant updates does not suppress this one. Only an old
    -- snapshot still shows a row below the lowest version.
    EXECUTE $update$
        UPDATE {{table}} AS t SET row_version = 0
        WHERE
            t.{{key}} OPERATOR(pg_catalog.=) ANY($1::{{key_type}} [])
            AND t.row_version OPERATOR(pg_catalog.>=) $2
    $update$ USING overtaken, lowest;
    PERFORM pg_catalog.set_config('cachesync.moved', moved, true);
    EXECUTE $select$
        SELECT EXISTS (
            SELECT FROM {{table}} AS t
            WHERE
                t.{{key}} OPERATOR(pg_catalog.=) ANY($1::{{key_type}} [])
                AND t.row_version OPERATOR(pg_catalog.>=) $2 AND t.row_version OPERATOR(pg_catalog.<=) $3
        )
    $select$ INTO lagging USING overtaken, lowest, highest;
    IF lagging THEN
        RAISE EXCEPTION 'a key was deleted while its row was being inserted, and a trigger of the table prevented '
            'the row from drawing a new version'
            USING ERRCODE = 'serialization_failure', HINT = 'Retry the transaction.';
    END IF;
END
$cachesync$;

-- A user who could create triggers with these functions on a table of their own could write anything into the log.
REVOKE ALL ON FUNCTION
{{log_insert}}(), {{log_update}}(), {{log_move}}(), {{log_delete}}(), {{log_truncate}}(),
{{redraw}}(text [], bigint [])
FROM public;

-- Triggers fire in the order of their names. As the last one, this trigger sees the row as the others have changed
-- it, and the others can compare the old row with the new one before its version changes.
CREATE OR REPLACE TRIGGER zzz_cachesync_version BEFORE INSERT OR UPDATE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION cachesync.draw_version();

CREATE OR REPLACE TRIGGER cachesync_log_insert AFTER INSERT ON {{table}}
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_insert}}();

CREATE OR REPLACE TRIGGER cachesync_log_update AFTER UPDATE ON {{table}}
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_update}}();

CREATE OR REPLACE TRIGGER cachesync_log_move AFTER UPDATE ON {{table}}
FOR EACH ROW WHEN (old.{{key}} <> new.{{key}}) EXECUTE FUNCTION {{log_move}}();

CREATE OR REPLACE TRIGGER cachesync_log_delete AFTER DELETE ON {{table}}
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_delete}}();

CREATE OR REPLACE TRIGGER cachesync_log_truncate AFTER TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION {{log_truncate}}();

-- Tools that load or replicate tables set session_replication_role = replica, which skips triggers that are not
-- ALWAYS.
ALTER TABLE {{table}}
ENABLE ALWAYS TRIGGER zzz_cachesync_version,
ENABLE ALWAYS TRIGGER cachesync_log_insert,
ENABLE ALWAYS TRIGGER cachesync_log_update,
ENABLE ALWAYS TRIGGER cachesync_log_move,
ENABLE ALWAYS TRIGGER cachesync_log_delete,
ENABLE ALWAYS TRIGGER cachesync_log_truncate;

-- PostgreSQL refuses to drop or retype a column that a view uses. Without the view, such a change would succeed,
-- and every later write would then fail in the triggers above.
CREATE OR REPLACE VIEW {{view}} AS
SELECT
    t.{{key}} AS key,
    t.row_version AS version,
    {{payload}} AS payload
FROM {{table}} AS t;
COMMENT ON VIEW {{view}} IS 'The rows of this entity as caches hold them; before you change one of these columns, remove it from the declaration and run `cachesync install`';
