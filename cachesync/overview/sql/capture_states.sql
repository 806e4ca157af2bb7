-- What is wrong with the capture of each entity, if the live check looked within the last minute.
SELECT s.entity, s.problem
FROM cachesync.capture_state AS s
WHERE s.checked_at > clock_timestamp() - interval '1 minute';
