-- A page of rows in one round trip, however large they are. $1 the query, $2 the key that precedes the page, $3 the
-- maximum number of rows, $4 the size in bytes that ends the page.
SELECT * FROM cachesync.page($1, $2, $3, $4);
