-- question: which indexes does processed_events have, and which of them can refuse a second registration?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    i.relname AS index_name,
    c.conname AS constraint_name,
    c.contype = 'p' AS is_primary,
    x.indisunique AS is_unique,
    x.indisvalid AS valid,
    x.indisready AND x.indislive AS ready,
    x.indimmediate AS immediate,
    x.indpred IS NOT NULL AS partial,
    (
        -- An expression has the number 0 and no name; what is only INCLUDEd is no part of the key.
        SELECT string_agg(coalesce(a.attname, '(expression)'), ', ' ORDER BY k.position)
        FROM unnest(x.indkey) WITH ORDINALITY AS k (number, position)
        LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number AND k.number > 0
        WHERE k.position <= x.indnkeyatts
    ) AS columns
FROM pg_catalog.pg_class t
JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
LEFT JOIN pg_catalog.pg_index x ON x.indrelid = t.oid
LEFT JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
LEFT JOIN pg_catalog.pg_constraint c ON c.conindid = x.indexrelid AND c.conrelid = t.oid AND c.contype IN ('p', 'u')
WHERE n.nspname = 'notification' AND t.relname = 'processed_events' AND t.relkind IN ('r', 'p')
ORDER BY x.indisunique DESC, i.relname
LIMIT :max_rows;
