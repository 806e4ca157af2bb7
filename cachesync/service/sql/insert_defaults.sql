-- Inserts a row of defaults, for an empty JSON object.
INSERT INTO {{table}} AS t DEFAULT VALUES
RETURNING t.{{key}}::text AS key;
