-- Whether the services see all rows of a table, whatever its permissive policies are. $1 the table.
SELECT EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = to_regclass($1) AND p.polname = 'cachesync_bypass');
