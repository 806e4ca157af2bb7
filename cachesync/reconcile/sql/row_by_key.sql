LATERAL (
    SELECT t.version, t.payload
    FROM {{view}} AS t
    WHERE {{has_key}}
    LIMIT 1
) AS r ON true
