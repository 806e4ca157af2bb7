-- The registered entities with their tables as they are named now. Before an upgrade, the registry of an early version has
-- no column for the table, and no entity shares rows with another one. A table that was dropped is only a number.
SELECT e.name, n.nspname AS schema_name, c.relname AS table_name
FROM cachesync.entity AS e
JOIN pg_class AS c ON c.oid = to_regclass(to_jsonb(e) ->> 'relation')
JOIN pg_namespace AS n ON n.oid = c.relnamespace;
