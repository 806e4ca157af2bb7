-- The functions and triggers of one entity. Statement triggers with transition tables: a bulk change pays
-- for its rows together. A session keeps the plans of a function from its first statement on, of one row
-- perhaps, for those of a million that follow, so no query here may have a plan that is quick for few
-- rows only, or for many only.

CREATE OR REPLACE FUNCTION {{log_insert}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp {{settings}}
AS $cachesync$
DECLARE
    lowest bigint;
    highest bigint;
    drawn bigint;
BEGIN
    -- An insert draws its number before its uniqueness check, which may then wait for a delete of the same
    -- key that draws a higher one. That can only be where others have drawn since this statement's first.
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
    -- Where a row came to its key by an update, it waited for that key as an insert would.
    IF current_setting('cachesync.moved', true) = 'on' THEN
        PERFORM {{redraw}}(array_agg(n.{{key}}::text), array_agg(n.row_version)) FROM new_rows AS n;
    END IF;
    INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
    SELECT n.row_version, {{entity}}, n.{{key}}::text, 'upsert', {{fingerprint}}, {{new_payload}}, cachesync.source()
    FROM new_rows AS n;
    RETURN NULL;
END
$cachesync$;

-- After each row whose key was changed. The updates of this transaction are from now on looked at more
-- closely than others have to be: which of their rows moved, a trigger per statement could only find out
-- by a join that every bulk update would pay for.
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

-- The settings leave it the key's index, the one way that is quick for any number of rows.
CREATE OR REPLACE FUNCTION {{log_delete}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $cachesync$
BEGIN
    -- One statement may delete a row and insert its key again (WITH ... DELETE); the insert is then the change.
    -- A row with a lower version is none: only a snapshot older than its deletion still shows it.
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

-- Makes those of the rows draw again whose key the log says was deleted after they drew: now the key is
-- this transaction's own. The update's trigger logs them.
--
-- The update fires the table's other triggers, whose functions may count on a search_path: they get that
-- of who installed this, as if they had made the update. The caller's own could lead them, with the rights
-- of that user, to functions of the caller's.
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
    -- None of these comes to its key by this update.
    PERFORM pg_catalog.set_config('cachesync.moved', 'off', true);
    -- EXECUTE plans for the number of keys at hand. The number drawn replaces the 0; were it no change, a
    -- trigger that drops idle updates would drop it. A row below the lowest version is one that only an old
    -- snapshot still shows.
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
        RAISE EXCEPTION 'a key was deleted while its row was inserted, and a trigger of the table keeps the '
            'row from drawing another version'
            USING ERRCODE = 'serialization_failure', HINT = 'Run the transaction again.';
    END IF;
END
$cachesync$;

-- Who may make a trigger of these on a table of their own could write what they like into the log.
REVOKE ALL ON FUNCTION
{{log_insert}}(), {{log_update}}(), {{log_move}}(), {{log_delete}}(), {{log_truncate}}(),
{{redraw}}(text [], bigint [])
FROM public;

-- Triggers fire in the order of their names. The last one sees what the others made of the row, and lets
-- those before it compare the row as it was with the row as it is to be.
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

-- Tools that load or replicate tables set session_replication_role = replica, which skips other triggers.
ALTER TABLE {{table}}
ENABLE ALWAYS TRIGGER zzz_cachesync_version,
ENABLE ALWAYS TRIGGER cachesync_log_insert,
ENABLE ALWAYS TRIGGER cachesync_log_update,
ENABLE ALWAYS TRIGGER cachesync_log_move,
ENABLE ALWAYS TRIGGER cachesync_log_delete,
ENABLE ALWAYS TRIGGER cachesync_log_truncate;

-- PostgreSQL refuses to drop or retype a column that a view shows. Without it, that would go through and
-- then fail every write at the triggers above.
CREATE OR REPLACE VIEW {{view}} AS
SELECT
    t.{{key}} AS key,
    t.row_version AS version,
    {{payload}} AS payload
FROM {{table}} AS t;
COMMENT ON VIEW {{view}} IS 'What caches hold of the rows of this entity; to change one of these columns, take it out of the declaration and run `cachesync install` first';
