-- The number of relays that are connected to this database. Every role can see the names of all sessions.
SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database();
