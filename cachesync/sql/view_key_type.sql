-- The type of the key of an entity; $1 its view.
SELECT format_type(a.atttypid, a.atttypmod)
FROM pg_attribute AS a
WHERE a.attrelid = to_regclass($1) AND a.attname = 'key';
