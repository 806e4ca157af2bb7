-- The actions on dead letters. The letters themselves are in Kafka. A letter is closed if it has a row here whose
-- action is not 'replayed', which is a failed manual attempt.

CREATE TABLE IF NOT EXISTS cachesync.dead_letter_action (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    action text NOT NULL CHECK (
        action IN ('retried', 'resolved', 'superseded', 'parked', 'replayed', 'discarded')
    ),
    reason text CHECK (action <> 'discarded' OR reason IS NOT NULL),
    letter_topic text NOT NULL,
    letter_partition integer NOT NULL,
    letter_offset bigint NOT NULL,
    -- The offsets of a recreated topic start at 0 again.
    letter_sent_at timestamptz NOT NULL,
    service text NOT NULL,
    original_topic text NOT NULL,
    original_partition integer NOT NULL,
    original_offset bigint NOT NULL,
    entity text NOT NULL,
    key text,
    version bigint,
    attempt integer NOT NULL,
    error text NOT NULL
);
COMMENT ON TABLE cachesync.dead_letter_action IS 'The actions on dead letters, one row per action';

DO $cachesync$
BEGIN
    IF to_regclass('cachesync.dead_letter_action_origin') IS NULL THEN
        CREATE UNIQUE INDEX IF NOT EXISTS dead_letter_action_end
        ON cachesync.dead_letter_action (letter_topic, letter_partition, letter_offset, letter_sent_at)
        WHERE action <> 'replayed';
        CREATE INDEX dead_letter_action_at ON cachesync.dead_letter_action (at);
        CREATE INDEX dead_letter_action_origin
        ON cachesync.dead_letter_action (original_topic, original_partition, original_offset);
    END IF;
END
$cachesync$;

GRANT SELECT, INSERT ON cachesync.dead_letter_action TO cachesync_worker;
