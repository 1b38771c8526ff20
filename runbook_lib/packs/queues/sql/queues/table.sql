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
    (SELECT string_agg(e.enumlabel, chr(10)) FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid) AS labels,
    CASE WHEN wanted.name = :state
        THEN array_to_string(CAST(CAST(s.most_common_vals AS text) AS text[]), chr(10)) END AS common
FROM unnest(CAST(:columns AS text[])) AS wanted (name)
LEFT JOIN pg_catalog.pg_attribute a
    ON a.attrelid = to_regclass(:table) AND a.attname = wanted.name AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname
ORDER BY wanted.name
LIMIT 50;
