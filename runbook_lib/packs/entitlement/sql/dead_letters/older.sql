-- question: how many dead letters of each store are older than the window (of 20,000 each)?
-- index: outbox_pick_idx, scan of the two dead-letter tables, which never shrink
-- cost: scan
-- answers: window
SELECT 'outbox' AS store, count(*) AS n
FROM (
    SELECT created_at FROM entitlement.outbox_events
    WHERE status = 'FAILED' AND created_at <= CAST(:since AS timestamptz) - interval '365 seconds'
    ORDER BY next_retry_at DESC, created_at DESC
    LIMIT 20000
) outbox
UNION ALL
SELECT 'delivery', count(*)
FROM (
    SELECT created_at FROM notification.notification_dlq
    WHERE created_at <= CAST(:since AS timestamptz)
    LIMIT 20000
) delivery
UNION ALL
SELECT 'broker', count(*)
FROM (
    SELECT created_at FROM notification.notification_nats_dlq
    WHERE created_at <= CAST(:since AS timestamptz)
    LIMIT 20000
) broker
LIMIT :max_rows;
