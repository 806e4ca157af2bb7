-- One process at a time does the live check, as long as its session lasts. Returns whether it is this one.
SELECT pg_try_advisory_lock(1684169587, 3);
