(SELECT {{schema}}.row_to_json(p.*)::text FROM (SELECT {{columns}}) AS p)
