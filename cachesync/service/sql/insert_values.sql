INSERT INTO {{table}} AS t ({{columns}})
SELECT {{values}}
FROM jsonb_to_record($1::text::jsonb) AS p ({{definitions}})
