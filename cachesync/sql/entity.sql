-- The functions and triggers of one entity. Statement triggers with transition tables: a bulk change pays
-- for its rows together.
--
-- The settings pin how PostgreSQL writes values as text: the payload of a version is the same bytes
-- whoever changed the row.

CREATE OR REPLACE FUNCTION {{log_insert}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' SET datestyle = 'ISO' SET intervalstyle = 'iso_8601' SET bytea_output = 'hex' SET extra_float_digits = 1
AS $$
DECLARE
    lowest bigint;
    highest bigint;
    drawn bigint;
    overtaken text [] := '{}';
BEGIN
    SELECT min(n.row_version), max(n.row_version), count(*) INTO lowest, highest, drawn FROM new_rows AS n;
    IF drawn = 0 THEN
        RETURN NULL;
    END IF;
    -- An insert draws its number before its uniqueness check, which may then wait for a delete of the same
    -- key that draws a higher one. That can only be where others have drawn since this statement's first.
    IF highest - lowest + 1 <> drawn OR highest <> (SELECT s.last_value FROM cachesync.row_version AS s) THEN
        IF current_setting('transaction_isolation') = 'read committed' THEN
            SELECT coalesce(array_agg(n.{{key}}::text), '{}') INTO overtaken
            FROM new_rows AS n
            WHERE EXISTS (
                SELECT
                FROM cachesync.change_log AS l
                WHERE
                    l.version > lowest AND l.version > n.row_version
                    AND l.entity = {{entity}} AND l.key = n.{{key}}::text
            );
        ELSE
            -- This snapshot may be older than the delete's commit, and so not show it.
            SELECT array_agg(n.{{key}}::text) INTO overtaken FROM new_rows AS n;
        END IF;
        -- Draws again, now that the key is this transaction's own; the update's trigger logs it.
        UPDATE {{table}} AS t SET row_version = t.row_version
        WHERE t.{{key}} = ANY(overtaken::{{key_type}} []);
    END IF;
    INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
    SELECT n.row_version, {{entity}}, n.{{key}}::text, 'upsert', {{fingerprint}}, {{new_payload}}, cachesync.source()
    FROM new_rows AS n
    WHERE n.{{key}}::text <> ALL(overtaken);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION {{log_update}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' SET datestyle = 'ISO' SET intervalstyle = 'iso_8601' SET bytea_output = 'hex' SET extra_float_digits = 1
AS $$
DECLARE
    moved text [];
BEGIN
    SELECT array_agg(n.{{key}}::text) INTO moved
    FROM new_rows AS n
    WHERE NOT EXISTS (SELECT FROM old_rows AS o WHERE o.{{key}} = n.{{key}});
    IF moved IS NULL THEN
        INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
        SELECT n.row_version, {{entity}}, n.{{key}}::text, 'upsert', {{fingerprint}}, {{new_payload}}, cachesync.source()
        FROM new_rows AS n;
        RETURN NULL;
    END IF;
    INSERT INTO cachesync.change_log (version, entity, key, operation, source)
    SELECT nextval('cachesync.row_version'), {{entity}}, o.{{key}}::text, 'delete', cachesync.source()
    FROM old_rows AS o
    WHERE NOT EXISTS (SELECT FROM {{table}} AS t WHERE t.{{key}} = o.{{key}});
    -- A row that came to its key by an update waited for that key as an insert would: it draws again.
    UPDATE {{table}} AS t SET row_version = t.row_version
    WHERE t.{{key}} = ANY(moved::{{key_type}} []);
    INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
    SELECT n.row_version, {{entity}}, n.{{key}}::text, 'upsert', {{fingerprint}}, {{new_payload}}, cachesync.source()
    FROM new_rows AS n
    WHERE n.{{key}}::text <> ALL(moved);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION {{log_delete}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- One statement may delete a row and insert its key again (WITH ... DELETE); the insert is then the change.
    INSERT INTO cachesync.change_log (version, entity, key, operation, source)
    SELECT nextval('cachesync.row_version'), {{entity}}, o.{{key}}::text, 'delete', cachesync.source()
    FROM old_rows AS o
    WHERE NOT EXISTS (SELECT FROM {{table}} AS t WHERE t.{{key}} = o.{{key}});
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION {{log_truncate}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO cachesync.change_log (version, entity, operation, source)
    VALUES (nextval('cachesync.row_version'), {{entity}}, 'truncate', cachesync.source());
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER cachesync_log_insert AFTER INSERT ON {{table}}
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_insert}}();

CREATE OR REPLACE TRIGGER cachesync_log_update AFTER UPDATE ON {{table}}
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_update}}();

CREATE OR REPLACE TRIGGER cachesync_log_delete AFTER DELETE ON {{table}}
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION {{log_delete}}();

CREATE OR REPLACE TRIGGER cachesync_log_truncate AFTER TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION {{log_truncate}}();

-- PostgreSQL refuses to drop or retype a column that a view shows. Without it, that would go through and
-- then fail every write at the triggers above.
DROP VIEW IF EXISTS {{view}};
CREATE VIEW {{view}} AS
SELECT
    t.{{key}} AS key,
    t.row_version AS version,
    {{payload}} AS payload
FROM {{table}} AS t;
COMMENT ON VIEW {{view}} IS 'What caches hold of the rows of this entity';

GRANT USAGE ON SCHEMA {{schema}} TO cachesync_service;
REVOKE ALL ON {{table}} FROM cachesync_service;
GRANT
SELECT ({{readable}}), INSERT ({{columns}}), UPDATE ({{columns}}), DELETE
ON {{table}} TO cachesync_service;

INSERT INTO cachesync.entity (name, schema_name, table_name, key_column, columns, fingerprint)
VALUES ({{entity}}, {{schema_name}}, {{table_name}}, {{key_name}}, {{column_names}}, {{fingerprint}})
ON CONFLICT (name) DO UPDATE SET columns = excluded.columns, fingerprint = excluded.fingerprint;
