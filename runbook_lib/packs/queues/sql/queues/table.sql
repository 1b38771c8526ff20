-- question: are the table and its columns there and readable, and of which types?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    wanted.name,
    to_regclass(:table) IS NOT NULL AS has_table,
    a.attname IS NOT NULL AS is_there,
    coalesce(has_column_privilege(to_regclass(:table), a.attnum, 'SELECT'), false) AS is_readable,
    coalesce(has_table_privilege(to_regclass(:table), 'UPDATE'), false) AS may_write,
    format_type(a.atttypid, NULL) AS type,
    (SELECT string_agg(e.enumlabel, chr(10)) FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid) AS labels
FROM unnest(CAST(:columns AS text[])) AS wanted (name)
LEFT JOIN pg_catalog.pg_attribute a
    ON a.attrelid = to_regclass(:table) AND a.attname = wanted.name AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY wanted.name
LIMIT 50;
