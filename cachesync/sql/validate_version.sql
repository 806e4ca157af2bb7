-- Reads the table while others write to it. SET NOT NULL alone would read it under its strongest lock;
-- after this it reads nothing.
ALTER TABLE {{table}} VALIDATE CONSTRAINT cachesync_versioned;
