-- The registered entities with their tables as they are named now.
SELECT e.name, n.nspname AS schema_name, c.relname AS table_name
FROM cachesync.entity AS e
JOIN pg_class AS c ON c.oid = e.relation
JOIN pg_namespace AS n ON n.oid = c.relnamespace;
