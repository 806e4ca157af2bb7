-- Inserts the row of an empty JSON object.
INSERT INTO {{table}} AS t DEFAULT VALUES
RETURNING t.{{key}}::text AS key;
