-- The letters in the parking lot that nobody has closed, by service.
SELECT p.service, count(*) AS letters
FROM cachesync.dead_letter_action AS p
WHERE
    p.action = 'parked'
    AND NOT EXISTS (
        SELECT FROM cachesync.dead_letter_action AS a
        WHERE
            a.original_topic = p.original_topic AND a.original_partition = p.original_partition
            AND a.original_offset = p.original_offset AND a.service = p.service
            AND a.id > p.id AND a.action IN ('resolved', 'superseded', 'discarded')
    )
GROUP BY p.service;
