-- Whether the view $1 has all of the columns $2.
SELECT count(*) = cardinality($2::text [])
FROM pg_attribute AS a
WHERE a.attrelid = to_regclass($1) AND a.attname = ANY($2::text []);
