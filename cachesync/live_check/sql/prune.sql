-- Removes what is older than 30 days, and the oldest violations beyond 10,000.
WITH counts AS (
    DELETE FROM cachesync.consistency AS c WHERE c.minute < statement_timestamp() - interval '30 days'
)
DELETE FROM cachesync.violation AS v
WHERE
    v.noticed_at < statement_timestamp() - interval '30 days'
    OR v.id <= (SELECT o.id FROM cachesync.violation AS o ORDER BY o.id DESC OFFSET 10000 LIMIT 1);
