-- Withdraws what `awake.sql` announces.
SELECT pg_advisory_unlock(1684169587, 1);
