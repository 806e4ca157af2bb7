-- The values of some columns in lines whose payloads are too large to be read. $1 the versions of the lines, $2 the columns.
SELECT
    l.version,
    (
        SELECT json_object_agg(m.key, m.value)::text
        FROM json_each(l.payload::json) AS m
        WHERE m.key = ANY($2::text [])
    ) AS payload
FROM cachesync.change_log AS l
WHERE l.version = ANY($1::bigint []);
