-- Fails if a value is not valid for its column. $1 a JSON object with only this member.
SELECT p.{{column}} FROM jsonb_to_record($1::text::jsonb) AS p ({{definition}});
