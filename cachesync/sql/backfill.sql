-- Gives the rows of one batch that have no version theirs; $1 the last key of the batch before, $2 its size.
-- SKIP LOCKED: a batch never waits, holding rows that others wait for; what it skips, a next round finds.
WITH batch AS (
    SELECT t.{{key}} AS key
    FROM {{table}} AS t
    WHERE $1::text IS NULL OR t.{{key}} > $1::text::{{key_type}}
    ORDER BY t.{{key}}
    LIMIT $2
), unversioned AS (
    SELECT t.{{key}} AS key
    FROM {{table}} AS t
    WHERE t.{{key}} IN (SELECT b.key FROM batch AS b) AND t.row_version IS NULL
), versioned AS (
    UPDATE {{table}} AS t SET row_version = t.row_version
    FROM (
        SELECT u.{{key}} AS key
        FROM {{table}} AS u
        WHERE u.{{key}} IN (SELECT n.key FROM unversioned AS n) AND u.row_version IS NULL
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS unlocked
    WHERE t.{{key}} = unlocked.key
    RETURNING t.{{key}}
)
SELECT
    (SELECT b.key::text FROM batch AS b ORDER BY b.key DESC LIMIT 1) AS last_key,
    (SELECT count(*) FROM versioned) AS versioned,
    (SELECT count(*) FROM unversioned) - (SELECT count(*) FROM versioned) AS skipped;
