-- Whether a column takes a value; $1 a JSON object with this one member.
SELECT p.{{column}} FROM jsonb_to_record($1::text::jsonb) AS p ({{definition}});
