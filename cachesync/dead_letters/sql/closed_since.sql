-- The letters that were closed by an action after number $1, and the numbers of those actions. They are numbered in the
-- order in which they are committed, because whoever acts on letters holds a lock until then.
SELECT a.id, a.letter_topic, a.letter_partition, a.letter_offset, a.letter_sent_at
FROM cachesync.dead_letter_action AS a
WHERE a.id > $1 AND a.action <> 'replayed'
ORDER BY a.id;
