-- question: which indexes does a schema have, and is each of them valid?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT i.relname AS index_name, x.indisvalid AND x.indisready AND x.indislive AS usable
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_class t ON t.oid = x.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = CAST(:schema AS text) AND NOT t.relispartition
ORDER BY t.relname, i.relname
LIMIT :max_rows;
