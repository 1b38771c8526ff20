-- question: which tables and columns does a schema have?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT c.relname AS table_name, string_agg(a.attname, ' ' ORDER BY a.attnum) AS column_names
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = CAST(:schema AS text) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
GROUP BY c.relname
ORDER BY c.relname
LIMIT :max_rows;
