-- The registered entities, each with what the registry remembers of its table and with what the catalog shows now.
-- `details` is a digest of the properties of the table that determine which values are valid.
-- The condition is evaluated before a row's functions, of which some wait for a table that is locked.
SELECT
    e.name, e.schema_name, e.table_name, e.key_columns, e.columns, e.fingerprint, e.definition, e.installation,
    e.lost_at, e.relation::oid AS relation, e.shape::text AS registered_shape,
    e.objects::text AS registered_objects,
    cachesync.partitions_changed(e.relation, e.partitions) AS partitions_changed,
    -- Not to_regclass, which fails without USAGE on the schema, and the background work does not have that.
    (
        SELECT c.oid
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = e.schema_name AND c.relname = e.table_name
    ) AS named,
    (
        SELECT format('%s.%s', n.nspname, c.relname)
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = e.relation
    ) AS current_name,
    cachesync.shape(e.relation, e.columns)::text AS shape,
    -- In a subquery, the function is called once, and not for each entity.
    (cachesync.objects(e.name, e.relation, e.columns) || (SELECT cachesync.shared_objects()))::text AS objects,
    md5(concat_ws(
        ' ',
        (
            SELECT
                string_agg(
                    concat_ws(
                        ' ', a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef, a.attidentity,
                        a.attcollation, t.typnotnull, t.typdefault
                    ),
                    ',' ORDER BY a.attnum
                )
            FROM pg_attribute AS a
            JOIN pg_type AS t ON t.oid = a.atttypid
            WHERE a.attrelid = e.relation AND a.attnum > 0 AND NOT a.attisdropped
        ),
        (
            SELECT string_agg(concat_ws(' ', p.conname, p.conkey), ',' ORDER BY p.conname)
            FROM pg_constraint AS p
            WHERE p.conrelid = e.relation
        ),
        (
            SELECT string_agg(concat_ws(' ', i.relname, x.indkey), ',' ORDER BY i.relname)
            FROM pg_index AS x
            JOIN pg_class AS i ON i.oid = x.indexrelid
            WHERE x.indrelid = e.relation AND x.indisunique
        ),
        cachesync.partitions(e.relation)
    )) AS details
FROM cachesync.entity AS e
WHERE {{condition}}
ORDER BY e.name;
