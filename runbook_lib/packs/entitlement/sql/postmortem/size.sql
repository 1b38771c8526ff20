-- question: how many sent notifications and published events do the planner's statistics know of?
-- index: catalog
-- cost: catalog
-- answers: window
SELECT max(n) FILTER (WHERE relname = 'notifications_retention_sent_failed_idx') AS ended,
    max(n) FILTER (WHERE relname = 'outbox_published_at_idx') AS published
FROM (
    SELECT c.relname, CAST(nullif(c.reltuples, -1) AS double precision) AS n  -- -1 is not counted yet
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
    WHERE s.nspname IN ('notification', 'entitlement')
) known;
