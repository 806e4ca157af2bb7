-- The owner of a table; null if the user of the session has the privileges of the owner. $1 schema, $2 table.
SELECT pg_get_userbyid(c.relowner)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND NOT pg_has_role(c.relowner, 'USAGE');
