-- Makes rows draw again whose keys, according to the log, were deleted after the rows drew their numbers: the keys now
-- belong to this transaction. The trigger of the update logs these rows.
--
-- The update can run code of the table's owner: triggers, rules, and functions in constraints and indexes. This function
-- must not run it, because it would run with the privileges of the owner and in a session that the writer controls, with
-- the writer's temporary objects and, at commit, the writer's search_path. It then leaves the update to the writer.
CREATE OR REPLACE FUNCTION {{redraw}}(keys text [], versions bigint []) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $cachesync$
DECLARE
    overtaken text [] := cachesync.overtaken({{entity}}, keys, versions);
    lowest bigint := (SELECT min(u.version) FROM unnest(versions) AS u (version));
    highest bigint := (SELECT max(u.version) FROM unnest(versions) AS u (version));
    moved text := current_setting('cachesync.moved', true);
    drawn bigint;
    lagging boolean;
BEGIN
    IF overtaken IS NULL THEN
        RETURN;
    END IF;
    IF cachesync.runs_code_of_its_owner({{table_name}}::regclass) THEN
        PERFORM set_config({{overtaken}}, (ARRAY[lowest::text, highest::text] || overtaken)::text, true);
        RETURN;
    END IF;
    {{draw_again}}
END
$cachesync$;

-- Makes the rows that the function above has left to the writer draw again, with the privileges and the search_path of
-- the writer, as if the writer had updated them.
CREATE OR REPLACE FUNCTION {{redraw_as_writer}}() RETURNS trigger
LANGUAGE plpgsql
AS $cachesync$
DECLARE
    overtaken pg_catalog.text [];
    lowest bigint;
    highest bigint;
    moved pg_catalog.text;
    drawn bigint;
    lagging boolean;
BEGIN
    -- Once a transaction has set it, it is empty instead of null.
    IF coalesce(pg_catalog.current_setting({{overtaken}}, true), '') OPERATOR(pg_catalog.=) '' THEN
        RETURN NULL;
    END IF;
    overtaken := pg_catalog.current_setting({{overtaken}}, true);
    PERFORM pg_catalog.set_config({{overtaken}}, '', true);
    lowest := overtaken[1];
    highest := overtaken[2];
    overtaken := overtaken[3:];
    moved := pg_catalog.current_setting('cachesync.moved', true);
    IF NOT (
        pg_catalog.has_column_privilege({{written}}, 'row_version', 'UPDATE')
        AND pg_catalog.has_column_privilege({{written}}, 'row_version', 'SELECT')
        AND (
            SELECT pg_catalog.bool_and(pg_catalog.has_column_privilege({{written}}, u.name, 'SELECT'))
            FROM pg_catalog.unnest({{key_names}}::pg_catalog.text []) AS u (name)
        )
    ) THEN
        RAISE EXCEPTION 'a row whose key another transaction can have deleted must draw a new version, which the role % '
            'may not do', current_user
            USING ERRCODE = 'insufficient_privilege', HINT = {{hint}};
    END IF;
    {{draw_again}}
    RETURN NULL;
END
$cachesync$;
