-- Whether a change that was due after $1 has been published since, by a relay.
SELECT EXISTS (
    SELECT
    FROM cachesync.change_log AS l
    WHERE l.published_at > $1 AND l.relay_at > $1 AND l.published_at >= l.relay_at
);
