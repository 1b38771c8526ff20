-- question: which tables of a schema are partitioned by time, and how far into the future do their partitions reach?
-- index: catalog
-- cost: catalog
-- answers: present
-- A partition without an end, and the default one, take what no other does.
SELECT
    c.relname AS table_name,
    count(*) AS partitions,
    extract(epoch FROM max(CAST(substring(b.bound FROM 'TO \(''(\d{4}-\d\d-\d\d[^'']*)''') AS timestamptz)) - now())
        / 86400 AS ahead_d,
    bool_or(b.bound = 'DEFAULT' OR b.bound LIKE '%TO (MAXVALUE%') AS takes_the_rest
FROM pg_catalog.pg_partitioned_table t
JOIN pg_catalog.pg_class c ON c.oid = t.partrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_inherits i ON i.inhparent = c.oid
JOIN pg_catalog.pg_class p ON p.oid = i.inhrelid
CROSS JOIN LATERAL (SELECT pg_get_expr(p.relpartbound, p.oid) AS bound) b
WHERE n.nspname = CAST(:schema AS text) AND t.partstrat = 'r'
GROUP BY c.relname
ORDER BY c.relname
LIMIT :max_rows;
