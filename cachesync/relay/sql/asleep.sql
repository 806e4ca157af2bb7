-- Announces to writers that a relay sleeps until it is notified. Returns whether it does: only one session can, and none
-- while a writer finds out.
SELECT cachesync.fall_asleep();
