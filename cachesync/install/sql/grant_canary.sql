-- The services neither serve nor change the hidden entity of the live check.
GRANT SELECT ON {{view}} TO cachesync_worker;
