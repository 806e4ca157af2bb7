-- The number that the sequence began with, which no other installation has.
SELECT seqstart FROM pg_sequence WHERE seqrelid = 'cachesync.row_version'::regclass;
