-- question: how many notifications are in each status? The active ones and FAILED exactly, SENT estimated
-- index: notifications_retention_active_idx, notifications_pending_idx; catalog for SENT
-- cost: index
-- answers: present
WITH counted AS (
    SELECT s.status, s.n
    FROM (
        SELECT count(*) FILTER (WHERE status = 'PENDING') AS pending,
            count(*) FILTER (WHERE status = 'PROCESSING') AS processing
        FROM notification.notifications
        WHERE status IN ('PENDING', 'PROCESSING')
    ) active,
    (SELECT count(*) AS failed FROM notification.notifications WHERE status = 'FAILED') ended,
    LATERAL (VALUES ('PENDING', pending), ('PROCESSING', processing), ('FAILED', failed)) AS s (status, n)
)
SELECT status, n, true AS exact FROM counted
UNION ALL
SELECT
    'SENT',
    greatest(CAST(greatest(c.reltuples, s.n_live_tup) AS bigint) - (SELECT CAST(sum(n) AS bigint) FROM counted), 0),
    false
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
WHERE c.oid = to_regclass('notification.notifications')
ORDER BY status;
