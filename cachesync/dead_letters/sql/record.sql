INSERT INTO cachesync.dead_letter_action (
    actor, reason, action,
    letter_topic, letter_partition, letter_offset, letter_sent_at,
    service, original_topic, original_partition, original_offset,
    entity, key, version, attempt, error
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16);
