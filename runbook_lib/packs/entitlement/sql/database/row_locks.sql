-- question: which open transactions hold due rows, so that every worker steps over them (of the 5,000 that have been due for longest)?
-- index: notifications_pending_idx, outbox_pick_idx
-- cost: index
-- answers: present
-- A fresh notification has a retry time, a fresh event has none. A row that somebody locks or changes carries the transaction's id; no view of locks has it.
SELECT
    a.pid,
    coalesce(nullif(a.application_name, ''), host(a.client_addr), '-') AS application,
    a.state,
    extract(epoch FROM clock_timestamp() - a.xact_start) AS transaction_s,
    count(*) AS n
FROM (
    (SELECT xmax AS held_by FROM notification.notifications
     WHERE status = 'PENDING' AND next_retry_at <= now()
     ORDER BY next_retry_at
     LIMIT 5000)
    UNION ALL
    (SELECT xmax FROM entitlement.outbox_events
     WHERE status = 'PENDING' AND next_retry_at IS NULL
     ORDER BY created_at
     LIMIT 5000)
) due
JOIN pg_catalog.pg_stat_activity a ON a.backend_xid = due.held_by
WHERE a.xact_start < now() - interval '5 seconds'
GROUP BY a.pid, a.application_name, a.client_addr, a.state, a.xact_start
ORDER BY n DESC
LIMIT 20;
