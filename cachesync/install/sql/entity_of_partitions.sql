-- The functions and triggers of an entity whose table is partitioned, or a partition: instead of those of `entity.sql`,
-- because statement triggers fire only for the table that a statement names, which can be any of the tree. Row triggers
-- fire in each partition, and PostgreSQL gives them to the partitions that are created or attached later. So each row
-- has a line of its own, and a row that moves to another partition is a delete and an insert.
--
-- `entity.sql` says which names have a schema, and why.

-- Only the owner of the table, who creates partitions, may use these functions. A user could also create triggers with them
-- on a table of their own, whose types would then run code with the privileges of the owner of the functions.
--
-- The setting `cachesync.run` has the first and the last of the consecutive numbers that this transaction has drawn for rows.
-- It tells the trigger below that nothing else can have been drawn meanwhile, so that it need not look.
CREATE OR REPLACE FUNCTION {{draw}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $cachesync$
DECLARE
    run pg_catalog.int8 [] := pg_catalog.string_to_array(pg_catalog.current_setting('cachesync.run', true), ' ');
BEGIN
    IF pg_catalog.pg_typeof(NEW.row_version) OPERATOR(pg_catalog.<>) 'pg_catalog.int8'::pg_catalog.regtype THEN
        RAISE EXCEPTION '% is not a partition of %', TG_RELID::pg_catalog.regclass, {{table_name}};
    END IF;
    NEW.row_version := pg_catalog.nextval('cachesync.row_version');
    IF run[2] OPERATOR(pg_catalog.+) 1 OPERATOR(pg_catalog.=) NEW.row_version THEN
        run[2] := NEW.row_version;
    ELSE
        run := ARRAY[NEW.row_version, NEW.row_version];
    END IF;
    PERFORM pg_catalog.set_config('cachesync.run', pg_catalog.array_to_string(run, ' '), true);
    RETURN NEW;
END
$cachesync$;

CREATE OR REPLACE FUNCTION {{log_row}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER {{settings}}
AS $cachesync$
DECLARE
    declared {{table}}%ROWTYPE;
    run pg_catalog.int8 [] := pg_catalog.string_to_array(pg_catalog.current_setting('cachesync.run', true), ' ');
    moved pg_catalog.bool := TG_OP OPERATOR(pg_catalog.=) 'INSERT';
    announced pg_catalog.bool;
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
        IF {{old_is_foreign}} THEN
            RAISE EXCEPTION '% is not a partition of %', TG_RELID::pg_catalog.regclass, {{table_name}};
        END IF;
        -- Until the end of this transaction, nobody else can have given the key to another row.
        IF run[2] OPERATOR(pg_catalog.>) OLD.row_version THEN
            PERFORM {{log_delete_of}}({{key_before}}, OLD.row_version);
        ELSE
            INSERT INTO cachesync.change_log (version, entity, key, operation, source)
            SELECT
                pg_catalog.nextval('cachesync.row_version'), {{entity}}, {{key_before}}, 'delete',
                cachesync.source();
        END IF;
        announced := cachesync.announce_change();
        RETURN NULL;
    END IF;
    IF {{new_is_foreign}} THEN
        RAISE EXCEPTION '% is not a partition of %', TG_RELID::pg_catalog.regclass, {{table_name}};
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        moved := {{key_changes}};
        IF moved THEN
            PERFORM {{log_delete_of}}({{key_before}}, OLD.row_version);
        END IF;
    END IF;
    -- A row draws its number before its uniqueness check, which can then wait for a delete of the same key that draws a
    -- higher one.
    IF
        moved
        AND (
            run[1] OPERATOR(pg_catalog.<=) NEW.row_version
            AND run[2] OPERATOR(pg_catalog.=) pg_catalog.pg_sequence_last_value('cachesync.row_version')
        ) IS NOT TRUE
    THEN
        PERFORM {{redraw}}(ARRAY[{{key_after}}], ARRAY[NEW.row_version]);
    END IF;
    INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
    SELECT
        NEW.row_version, {{entity}}, {{key_after}}, 'upsert', {{fingerprint}},
        {{json_schema}}.row_to_json(p.*)::pg_catalog.text, cachesync.source()
    FROM (SELECT {{columns}}) AS p;
    announced := cachesync.announce_change();
    RETURN NULL;
END
$cachesync$;

-- Logs the delete of a key, unless another row has it by now: one statement can delete a row and insert its key again, or
-- give the key to another row. A row with a lower version no longer exists: only a snapshot older than its deletion still
-- shows it.
CREATE OR REPLACE FUNCTION {{log_delete_of}}(key text, row_version bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $cachesync$
BEGIN
    INSERT INTO cachesync.change_log (version, entity, key, operation, source)
    SELECT nextval('cachesync.row_version'), {{entity}}, $1, 'delete', cachesync.source()
    WHERE NOT EXISTS (SELECT FROM {{table}} AS t WHERE {{has_key}} AND t.row_version > $2);
END
$cachesync$;

-- A TRUNCATE fires this trigger of each partition that it empties, and one line tells of all of them. If other numbers
-- were drawn in between, rows can have been.
CREATE OR REPLACE FUNCTION {{log_truncate}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $cachesync$
DECLARE
    newest bigint := pg_sequence_last_value('cachesync.row_version');
BEGIN
    IF NOT EXISTS (
        SELECT FROM cachesync.change_log AS l
        WHERE
            l.version = newest
            AND l.entity = {{entity}} AND l.operation = 'truncate' AND l.transaction = pg_current_xact_id()
    ) THEN
        INSERT INTO cachesync.change_log (version, entity, operation, source)
        VALUES (nextval('cachesync.row_version'), {{entity}}, 'truncate', cachesync.source());
        PERFORM cachesync.announce_change();
    END IF;
    RETURN NULL;
END
$cachesync$;

{{redraw_functions}}
REVOKE ALL ON FUNCTION
{{draw}}(), {{log_row}}(), {{log_delete_of}}(text, bigint), {{log_truncate}}(),
{{redraw}}(text [], bigint []), {{redraw_as_writer}}()
FROM public;

-- Triggers that were renamed, or that the table got before it was a partition, would log changes twice.
DO $cachesync$
DECLARE
    former text;
BEGIN
    FOR former IN
        SELECT g.tgname
        FROM pg_trigger AS g
        JOIN pg_proc AS f ON f.oid = g.tgfoid
        WHERE
            g.tgrelid = {{table_name}}::regclass AND f.pronamespace = 'cachesync'::regnamespace
            AND g.tgname NOT IN (
                'zzz_cachesync_version', 'cachesync_log_row', 'cachesync_log_truncate', 'cachesync_redraw'
            )
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', former, {{table_name}}::regclass);
    END LOOP;
END
$cachesync$;

-- As the last one, this trigger sees the row as the others have changed it.
CREATE OR REPLACE TRIGGER zzz_cachesync_version BEFORE INSERT OR UPDATE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION {{draw}}();

CREATE OR REPLACE TRIGGER cachesync_log_row AFTER INSERT OR UPDATE OR DELETE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION {{log_row}}();

CREATE OR REPLACE TRIGGER cachesync_log_truncate AFTER TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION {{log_truncate}}();

-- Its name makes it fire after the trigger that finds out whether the row must draw again.
CREATE OR REPLACE TRIGGER cachesync_redraw AFTER INSERT OR UPDATE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION {{redraw_as_writer}}();

ALTER TABLE {{table}}
ENABLE ALWAYS TRIGGER zzz_cachesync_version,
ENABLE ALWAYS TRIGGER cachesync_log_row,
ENABLE ALWAYS TRIGGER cachesync_log_truncate,
ENABLE ALWAYS TRIGGER cachesync_redraw;

-- A partition can have been given other settings than the table.
DO $cachesync$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT g.tgrelid::regclass AS name, g.tgname
        FROM pg_trigger AS g
        WHERE
            g.tgrelid IN (SELECT p.relid FROM pg_partition_tree({{table_name}}::regclass) AS p)
            AND g.tgparentid <> 0 AND g.tgenabled <> 'A'
            AND g.tgname IN ('zzz_cachesync_version', 'cachesync_log_row', 'cachesync_redraw')
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', part.name, part.tgname);
    END LOOP;
END
$cachesync$;

{{shown}}
