-- question: which tables have a time, and what are their columns, types, checks and most common values?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    n.nspname AS schema,
    c.relname AS "table",
    a.attname AS "column",
    format_type(a.atttypid, NULL) AS type,
    (SELECT string_agg(e.enumlabel, chr(10) ORDER BY e.enumsortorder)
        FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid) AS labels,
    (SELECT string_agg(pg_get_constraintdef(k.oid), ' ')
        FROM pg_catalog.pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.conkey = ARRAY[a.attnum]) AS checks,
    EXISTS (SELECT FROM pg_catalog.pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype = 'p' AND k.conkey = ARRAY[a.attnum]) AS is_key,
    -- Of a column with few values only: those of others may be anything.
    CASE WHEN s.n_distinct BETWEEN 1 AND 12
        THEN array_to_string(CAST(CAST(s.most_common_vals AS text) AS text[]), chr(10)) END AS common
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname
WHERE c.relkind IN ('r', 'p')
    AND NOT c.relispartition
    AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND n.nspname NOT LIKE 'pg_toast%'
    AND EXISTS (SELECT FROM pg_catalog.pg_attribute t
        WHERE t.attrelid = c.oid AND NOT t.attisdropped
            AND t.atttypid IN (CAST('timestamptz' AS regtype), CAST('timestamp' AS regtype)))
ORDER BY n.nspname, c.relname, a.attnum
LIMIT 5000;
