-- Those of the given letters that are closed. $1 their topic, $2 to $4 their partitions, offsets and times.
SELECT a.letter_partition, a.letter_offset, a.letter_sent_at
FROM cachesync.dead_letter_action AS a
JOIN unnest($2::integer [], $3::bigint [], $4::timestamptz []) AS l (partition, "offset", sent_at)
    ON a.letter_partition = l.partition AND a.letter_offset = l."offset" AND a.letter_sent_at = l.sent_at
WHERE a.letter_topic = $1 AND a.action <> 'replayed';
