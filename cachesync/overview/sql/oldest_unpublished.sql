-- The entity of the change that has been due for longest; no line that was due before $1 is unpublished.
SELECT l.entity
FROM cachesync.change_log AS l
WHERE l.published_at IS NULL AND l.relay_at >= $1
ORDER BY l.relay_at
LIMIT 1;
