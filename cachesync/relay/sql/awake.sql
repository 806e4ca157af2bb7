-- Withdraws what `asleep.sql` announces: from now on, the relay looks for changes by itself.
SELECT cachesync.stay_awake();
