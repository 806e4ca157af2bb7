(
    SELECT t.key, t.version, t.payload
    FROM {{view}} AS t
    WHERE t.key = ANY((SELECT q.keys FROM requested AS q)::{{key_type}} [])
) AS r ON r.key = s.key
