-- What the registry remembers of an entity's table and of the objects that capture its changes. The services and
-- the relay compare it with the catalog. Functions compute it here, not in the client, so that services of
-- different versions compare the same. Nothing in it changes by a dump and a restore.

DO $cachesync$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = 'cachesync.entity'::regclass AND a.attname = 'relation'
    ) THEN
        -- As a regclass, a dump contains the name of the table, not its number.
        ALTER TABLE cachesync.entity
        ADD COLUMN relation regclass,
        ADD COLUMN shape jsonb,
        ADD COLUMN objects jsonb,
        ADD COLUMN lost_at timestamptz;
        COMMENT ON COLUMN cachesync.entity.lost_at IS 'When the relay noticed that changes may not be captured; the next `cachesync install` makes the caches start over';
    END IF;
END
$cachesync$;

-- Everything that decides the JSON text of a type's values.
CREATE OR REPLACE FUNCTION cachesync.type_shape(type oid, modifier integer) RETURNS jsonb
LANGUAGE plpgsql STABLE STRICT SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $cachesync$
DECLARE
    t pg_catalog.pg_type := (SELECT y FROM pg_catalog.pg_type AS y WHERE y.oid = type_shape.type);
    shape jsonb := jsonb_build_object('type', format_type(type, modifier));
BEGIN
    IF t.typtype = 'c' THEN
        RETURN shape || jsonb_build_object('attributes', (
            SELECT jsonb_agg(
                jsonb_build_object('name', a.attname, 'type', cachesync.type_shape(a.atttypid, a.atttypmod))
                ORDER BY a.attnum
            )
            FROM pg_attribute AS a
            WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        ));
    ELSIF t.typtype = 'd' THEN
        RETURN shape || jsonb_build_object('of', cachesync.type_shape(t.typbasetype, t.typtypmod));
    ELSIF t.typcategory = 'A' AND t.typelem <> 0 THEN
        RETURN shape || jsonb_build_object('of', cachesync.type_shape(t.typelem, modifier));
    ELSIF t.typtype = 'e' THEN
        -- By position: a label that was added keeps the others' positions, and one that was renamed keeps its own.
        shape := shape || jsonb_build_object('labels', (
            SELECT coalesce(jsonb_object_agg(e.enumsortorder, e.enumlabel), '{}')
            FROM pg_enum AS e
            WHERE e.enumtypid = type_shape.type
        ));
    ELSIF t.typtype IN ('r', 'm') THEN
        shape := shape || jsonb_build_object('of', (
            SELECT cachesync.type_shape(r.rngsubtype, -1)
            FROM pg_range AS r
            WHERE type_shape.type IN (r.rngtypid, r.rngmultitypid)
        ));
    END IF;
    -- Such a cast replaces the usual conversion of a type, unless the type is built in.
    RETURN shape || jsonb_build_object('cast', (
        SELECT format('%s %s', c.castmethod, c.castfunc::regproc)
        FROM pg_cast AS c
        WHERE c.castsource = type_shape.type AND c.casttarget = 'json'::regtype AND c.castsource >= 16384
    ));
END
$cachesync$;

-- Everything that decides the JSON text of these columns: the fingerprint depends on it. A column without a type no
-- longer exists.
CREATE OR REPLACE FUNCTION cachesync.shape(relation oid, columns text []) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off {{settings}}
AS $cachesync$
SELECT jsonb_agg(
    jsonb_strip_nulls(jsonb_build_object(
        'name', u.name,
        'type', cachesync.type_shape(a.atttypid, a.atttypmod),
        'expression', (
            SELECT pg_get_expr(d.adbin, d.adrelid)
            FROM pg_attrdef AS d
            WHERE a.attgenerated <> '' AND d.adrelid = a.attrelid AND d.adnum = a.attnum
        )
    ))
    ORDER BY u.position
)
FROM unnest(shape.columns) WITH ORDINALITY AS u (name, position)
LEFT JOIN pg_attribute AS a
    ON a.attrelid = shape.relation AND a.attname = u.name AND a.attnum > 0 AND NOT a.attisdropped
$cachesync$;

-- The triggers and rules that can discard or change new lines of a table; null if there are none.
CREATE OR REPLACE FUNCTION cachesync.discards(relation oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $cachesync$
SELECT string_agg(o.name, ', ' ORDER BY o.name)
FROM (
    -- 2 is the bit of BEFORE in tgtype, 4 that of INSERT.
    SELECT 'trigger ' || g.tgname AS name
    FROM pg_trigger AS g
    WHERE g.tgrelid = discards.relation AND NOT g.tgisinternal AND g.tgtype & 6 = 6
    UNION ALL
    SELECT 'rule ' || r.rulename FROM pg_rewrite AS r WHERE r.ev_class = discards.relation
) AS o
$cachesync$;

-- The objects that the installation made for all entities, by name. `does` is a digest of what the object does.
CREATE OR REPLACE FUNCTION cachesync.shared_objects() RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off {{settings}}
AS $cachesync$
SELECT coalesce(jsonb_object_agg(o.name, o.properties), '{}')
FROM (
    SELECT
        'function ' || f.proname AS name,
        jsonb_build_object('does', md5(concat_ws(
            ' ', f.prosrc, pg_get_function_sqlbody(f.oid), f.prosecdef, f.proconfig, l.lanname
        ))) AS properties
    FROM pg_proc AS f
    JOIN pg_language AS l ON l.oid = f.prolang
    WHERE
        f.pronamespace = 'cachesync'::regnamespace
        AND f.proname IN (
            'announce_change', 'draw_version', 'log_upserts', 'overtaken', 'publishes', 'relay_at', 'row_to_json',
            'runs_code_of_its_owner', 'source'
        )
    UNION ALL
    SELECT
        'sequence row_version',
        jsonb_build_object(
            'does', md5(concat_ws(
                ' ', s.seqtypid::regtype, s.seqincrement, s.seqcache, s.seqcycle, s.seqmax, c.relpersistence
            ))
        )
    FROM pg_sequence AS s
    JOIN pg_class AS c ON c.oid = s.seqrelid
    WHERE s.seqrelid = to_regclass('cachesync.row_version')
    UNION ALL
    -- Whether lines are kept as they are written: not if the table is unlogged, or a trigger or rule discards them.
    SELECT
        'table change_log',
        jsonb_build_object('does', md5(concat_ws(' ', c.relpersistence, c.relforcerowsecurity, cachesync.discards(c.oid))))
    FROM pg_class AS c
    WHERE c.oid = to_regclass('cachesync.change_log')
) AS o
$cachesync$;

-- The objects that the installation made for one entity, by name, and the properties of its table that must stay. An
-- entity that is no longer declared has those of the version that declared it.
CREATE OR REPLACE FUNCTION cachesync.objects(entity text, relation oid, columns text []) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $cachesync$
SELECT coalesce(jsonb_object_agg(o.name, o.properties), '{}')
FROM (
    SELECT
        'trigger ' || g.tgname AS name,
        jsonb_build_object(
            'enabled', g.tgenabled,
            'does', md5(concat_ws(
                ' ', f.proname, g.tgtype, g.tgnargs, g.tgattr, g.tgoldtable, g.tgnewtable, g.tgqual IS NULL
            ))
        ) AS properties
    FROM pg_trigger AS g
    JOIN pg_proc AS f ON f.oid = g.tgfoid AND f.pronamespace = 'cachesync'::regnamespace
    WHERE g.tgrelid = objects.relation
    UNION ALL
    -- The partitions come and go, so that only what is wrong with them is named.
    SELECT
        format('trigger %s of partition %s', g.tgname, g.tgrelid::regclass),
        jsonb_build_object('enabled', g.tgenabled)
    FROM cachesync.partition_tree(objects.relation) AS p
    JOIN pg_trigger AS g ON g.tgrelid = p.relid AND g.tgenabled <> 'A'
    JOIN pg_proc AS f ON f.oid = g.tgfoid AND f.pronamespace = 'cachesync'::regnamespace
    WHERE p.relid <> objects.relation
    UNION ALL
    -- `able`: the function runs as its owner, who needs these privileges.
    SELECT
        'function ' || f.proname,
        jsonb_build_object(
            'does', md5(concat_ws(' ', f.prosrc, f.prosecdef, f.proconfig, l.lanname)),
            'able',
            has_schema_privilege(f.proowner, 'cachesync', 'USAGE')
            AND has_sequence_privilege(f.proowner, to_regclass('cachesync.row_version'), 'USAGE')
            AND has_table_privilege(f.proowner, to_regclass('cachesync.change_log'), 'INSERT')
            AND has_table_privilege(f.proowner, objects.relation, 'SELECT')
            AND has_table_privilege(f.proowner, objects.relation, 'UPDATE')
        )
    FROM pg_proc AS f
    JOIN pg_language AS l ON l.oid = f.prolang
    WHERE
        f.pronamespace = 'cachesync'::regnamespace
        -- An array, for which the index on names is used: the schema has a dozen functions for each of the entities.
        AND f.proname = ANY(ARRAY(
            SELECT (objects.entity || s.suffix)::name
            FROM unnest(ARRAY[
                '_draw_update', '_log_insert', '_log_update', '_keep_moved', '_log_delete', '_log_truncate', '_redraw',
                '_redraw_as_writer', '_log_move', '_draw', '_log_row', '_log_delete_of'
            ]) AS s (suffix)
        ))
    UNION ALL
    SELECT 'view ' || objects.entity, '{}'
    WHERE to_regclass(format('cachesync.%I', objects.entity)) IS NOT NULL
    UNION ALL
    SELECT
        'column row_version',
        jsonb_build_object('does', md5(concat_ws(
            ' ', a.atttypid::regtype, a.attnotnull,
            (
                SELECT pg_get_expr(d.adbin, d.adrelid)
                FROM pg_attrdef AS d
                WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum
            )
        )))
    FROM pg_attribute AS a
    WHERE a.attrelid = objects.relation AND a.attname = 'row_version' AND NOT a.attisdropped
    UNION ALL
    SELECT
        'row security',
        jsonb_build_object('on', c.relrowsecurity, 'bypassed', EXISTS (
            SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid AND p.polname = 'cachesync_bypass'
        ))
    FROM pg_class AS c
    WHERE c.oid = objects.relation
    UNION ALL
    -- Columns that exchanged their names differ only in their numbers, which a restored table may not have kept.
    SELECT
        'column numbers',
        jsonb_build_object('relation', objects.relation, 'numbers', (
            SELECT jsonb_agg(a.attnum ORDER BY array_position(objects.columns, a.attname::text))
            FROM pg_attribute AS a
            WHERE a.attrelid = objects.relation AND a.attname = ANY(objects.columns) AND NOT a.attisdropped
        ))
) AS o
$cachesync$;

GRANT EXECUTE ON FUNCTION
cachesync.type_shape(oid, integer),
cachesync.shape(oid, text []),
cachesync.discards(oid),
cachesync.shared_objects(),
cachesync.objects(text, oid, text [])
TO cachesync_service, cachesync_worker;
GRANT UPDATE (lost_at) ON cachesync.entity TO cachesync_worker;

-- What is still not as it was made would otherwise be registered as it is. Only if needed, because these statements wait
-- for every writer.
DO $cachesync$
DECLARE
    found text := cachesync.discards('cachesync.change_log'::regclass);
BEGIN
    IF found IS NOT NULL THEN
        RAISE EXCEPTION '% of cachesync.change_log can discard changes; drop it first', found;
    END IF;
    IF EXISTS (
        SELECT FROM pg_sequence AS s
        WHERE
            s.seqrelid = 'cachesync.row_version'::regclass
            AND (s.seqincrement, s.seqcache, s.seqcycle, s.seqmax) <> (1, 1, false, 9223372036854775807)
    ) THEN
        ALTER SEQUENCE cachesync.row_version INCREMENT 1 CACHE 1 NO CYCLE NO MAXVALUE;
    END IF;
    IF EXISTS (
        SELECT FROM pg_class AS c WHERE c.oid = 'cachesync.row_version'::regclass AND c.relpersistence = 'u'
    ) THEN
        ALTER SEQUENCE cachesync.row_version SET LOGGED;
    END IF;
    IF EXISTS (
        SELECT FROM pg_class AS c WHERE c.oid = 'cachesync.change_log'::regclass AND c.relpersistence = 'u'
    ) THEN
        ALTER TABLE cachesync.change_log SET LOGGED;
    END IF;
END
$cachesync$;

-- The statements before this one have just made these objects, and dropped those of earlier versions.
UPDATE cachesync.entity AS e
SET objects = e.objects - '{function announce, trigger announce}'::text [] || cachesync.shared_objects()
WHERE e.objects IS NOT NULL;
