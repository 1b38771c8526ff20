-- question: what may this role do with each table of the system?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    n.nspname || '.' || c.relname AS table_name,
    has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT') AS may_read,
    has_any_column_privilege(c.oid, 'INSERT') OR has_any_column_privilege(c.oid, 'UPDATE')
        OR has_table_privilege(c.oid, 'DELETE') OR has_table_privilege(c.oid, 'TRUNCATE') AS may_write
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(coalesce(CAST(:schemas AS name[]), current_schemas(false)))
  AND c.relname = ANY(coalesce(CAST(:tables AS name[]), ARRAY[c.relname]))
  AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY 1
LIMIT :max_rows;
