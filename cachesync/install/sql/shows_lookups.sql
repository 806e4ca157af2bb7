-- Whether the view $1 shows columns of unique lookups.
SELECT EXISTS (
    SELECT FROM pg_attribute AS a
    WHERE a.attrelid = to_regclass($1) AND a.attname = 'unique_1'
);
