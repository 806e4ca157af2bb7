-- $1 a JSON object with just these members.
INSERT INTO {{table}} AS t ({{columns}})
SELECT {{values}}
FROM jsonb_to_record($1::text::jsonb) AS p ({{definitions}})
RETURNING t.{{key}}::text AS key;
