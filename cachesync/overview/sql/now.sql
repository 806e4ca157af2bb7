-- The time of the server, and the number of relays that are connected, whose sessions are named $1. Every role can see the
-- names of all sessions.
SELECT
    clock_timestamp() AS now,
    (
        SELECT count(*)
        FROM pg_stat_activity AS a
        WHERE a.application_name = $1 AND a.datname = current_database()
    ) AS relays;
