-- Adds figures to those that are there: the end of an INSERT INTO cachesync.consistency AS c.
ON CONFLICT (minute, service, entity) DO UPDATE SET
judged = ARRAY(
    SELECT u.before + u.more FROM unnest(c.judged, excluded.judged) WITH ORDINALITY AS u (before, more, place)
    ORDER BY u.place
),
seen = ARRAY(
    SELECT u.before + u.more FROM unnest(c.seen, excluded.seen) WITH ORDINALITY AS u (before, more, place)
    ORDER BY u.place
),
lags = ARRAY(
    SELECT u.before + u.more FROM unnest(c.lags, excluded.lags) WITH ORDINALITY AS u (before, more, place)
    ORDER BY u.place
),
hits = c.hits + excluded.hits,
misses = c.misses + excluded.misses,
bypasses = c.bypasses + excluded.bypasses
