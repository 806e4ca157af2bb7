-- Announces to writers that the relay looks for changes by itself, so that they do not notify it. Returns whether it
-- does: only one session can, and none while a writer finds out.
SELECT cachesync.stay_awake();
