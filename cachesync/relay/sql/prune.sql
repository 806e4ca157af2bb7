-- Removes the lines among the next $2 after version $1 that were published longer ago than $3. Versions grow with
-- time, so a pass goes upward from the lowest version and ends with the first batch that reaches younger lines.
-- Returns the number of removed lines and, as `next`, the last version of the batch, or null if the pass has ended.
WITH batch AS MATERIALIZED (
    SELECT l.version, l.changed_at, l.published_at
    FROM cachesync.change_log AS l
    WHERE l.version > $1
    ORDER BY l.version
    LIMIT $2
), old AS MATERIALIZED (
    SELECT l.version
    FROM cachesync.change_log AS l
    WHERE
        l.version = ANY(ARRAY(
            SELECT b.version FROM batch AS b WHERE b.published_at < statement_timestamp() - $3::interval
        ))
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM cachesync.change_log AS l
    WHERE l.version = ANY(ARRAY(SELECT o.version FROM old AS o))
    RETURNING l.version
)
SELECT
    (SELECT count(*) FROM removed) AS removed,
    (
        SELECT max(b.version) FROM batch AS b
        HAVING count(*) = $2 AND max(b.changed_at) < statement_timestamp() - $3::interval
    ) AS next;
