INSERT INTO cachesync.entity (
    name, schema_name, table_name, key_column, key_columns, columns, fingerprint, definition, installation, relation,
    shape, objects
)
SELECT
    {{entity}}, {{schema_name}}, {{table_name}}, ({{key_names}})[1], {{key_names}}, {{column_names}}, {{fingerprint}},
    {{definition}}, {{installation}}, {{relation}}::regclass, cachesync.shape({{relation}}::regclass, {{column_names}}),
    cachesync.objects({{entity}}, {{relation}}::regclass, {{column_names}}) || cachesync.shared_objects()
ON CONFLICT (name) DO UPDATE SET
schema_name = excluded.schema_name,
table_name = excluded.table_name,
columns = excluded.columns,
fingerprint = excluded.fingerprint,
definition = excluded.definition,
installation = excluded.installation,
relation = excluded.relation,
shape = excluded.shape,
objects = excluded.objects,
lost_at = NULL;
