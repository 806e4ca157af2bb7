-- How many letters each thing was done with, and by whom, since $1.
SELECT action, actor, count(*) AS letters
FROM cachesync.dead_letter_action
WHERE at >= $1
GROUP BY action, actor
ORDER BY action, actor;
