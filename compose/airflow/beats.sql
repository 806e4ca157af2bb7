-- Whether the component of this kind in this container has beaten in the last 30 seconds.
SELECT count(*) > 0
FROM job
WHERE
    job_type = %(job_type)s
    AND hostname = %(hostname)s
    AND latest_heartbeat > greatest(start_date, now() - interval '30 seconds');
