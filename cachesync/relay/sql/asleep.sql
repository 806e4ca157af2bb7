-- Withdraws what `awake.sql` announces.
SELECT cachesync.fall_asleep();
