-- The user's tables, as they are declared in the entities file.
SELECT CASE n.nspname WHEN 'public' THEN c.relname ELSE n.nspname || '.' || c.relname END AS name
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('p', 'r') AND n.nspname NOT IN ('cachesync', 'information_schema') AND n.nspname !~ '^pg_'
