-- question: how many sent notifications and published events do the planner's statistics know of?
-- index: catalog
-- cost: catalog
-- answers: window
-- column: ended rows
-- column: published rows
SELECT CAST(max(c.reltuples) FILTER (WHERE c.relname = 'notifications_retention_sent_failed_idx') AS double precision)
        AS ended,
    CAST(max(c.reltuples) FILTER (WHERE c.relname = 'outbox_published_at_idx') AS double precision) AS published
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
WHERE s.nspname IN ('notification', 'entitlement')
  AND c.relname IN ('notifications_retention_sent_failed_idx', 'outbox_published_at_idx');
