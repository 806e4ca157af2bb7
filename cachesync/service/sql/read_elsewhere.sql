-- Rows, in a session with any settings: the query that reads them is a literal, and its only parameter is their keys.
SELECT r.key, r.version, r.payload FROM cachesync.read_rows({{query}}, {{keys}}) AS r;
