-- The number of letters per action and actor since $1.
SELECT action, actor, count(*) AS letters
FROM cachesync.dead_letter_action
WHERE at >= $1
GROUP BY action, actor
ORDER BY action, actor;
