-- Whether this container's component of the given type has sent a heartbeat in the last 30 seconds.
SELECT count(*) > 0
FROM job
WHERE
    job_type = %(job_type)s
    AND hostname = %(hostname)s
    AND latest_heartbeat > greatest(start_date, now() - interval '30 seconds');
