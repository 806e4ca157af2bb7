-- The next keys, in their order. $1 the key that precedes them, null at the beginning; $2 the number.
SELECT {{key_text}} AS key FROM {{view}} AS v WHERE {{follows}} ORDER BY {{key_columns}} LIMIT $2;
