-- The actions on all letters of one message, oldest first; $1 the service, $2 to $4 the position of the message.
SELECT at, actor, action, reason, letter_topic, letter_partition, letter_offset, attempt, error
FROM cachesync.dead_letter_action
WHERE service = $1 AND original_topic = $2 AND original_partition = $3 AND original_offset = $4
ORDER BY id;
