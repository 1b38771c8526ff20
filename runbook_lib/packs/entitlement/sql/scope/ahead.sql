-- question: how many rows have a time later than the database's, and by how much at most (of 20,000 in each table)?
-- index: outbox_pick_idx, processed_events_processed_at_idx, notifications_retention_*_idx
-- cost: index
-- answers: present
SELECT table_name, count(*) AS n, extract(epoch FROM max(at) - now()) AS ahead_s
FROM (
    (SELECT 'entitlement.outbox_events' AS table_name, created_at AS at
     FROM entitlement.outbox_events
     WHERE status IN ('PENDING', 'IN_FLIGHT', 'PUBLISHED', 'FAILED') AND next_retry_at IS NULL AND created_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'entitlement.outbox_events', created_at
     FROM entitlement.outbox_events
     WHERE status IN ('PENDING', 'IN_FLIGHT') AND next_retry_at IS NOT NULL AND created_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'notification.processed_events', processed_at
     FROM notification.processed_events
     WHERE processed_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'notification.notifications', created_at
     FROM notification.notifications
     WHERE status IN ('SENT', 'FAILED') AND created_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'notification.notifications', created_at
     FROM notification.notifications
     WHERE status IN ('PENDING', 'PROCESSING') AND created_at > now()
     LIMIT 20000)
) later
GROUP BY 1
ORDER BY 1;
