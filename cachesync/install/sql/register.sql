INSERT INTO cachesync.entity (name, schema_name, table_name, key_column, columns, fingerprint, definition, installation)
VALUES (
    {{entity}}, {{schema_name}}, {{table_name}}, {{key_name}}, {{column_names}}, {{fingerprint}}, {{definition}},
    {{installation}}
)
ON CONFLICT (name) DO UPDATE SET
schema_name = excluded.schema_name,
table_name = excluded.table_name,
columns = excluded.columns,
fingerprint = excluded.fingerprint,
definition = excluded.definition;
