-- question: how many rows of which column have a time later than the database's, by how much at most, since when by the row's other time, and who writes it (of 20,000 each)?
-- index: outbox_pick_idx, outbox_published_at_idx, processed_events_processed_at_idx, notifications_retention_*_idx
-- cost: index
-- answers: present
SELECT column_name, writer, count(*) AS n, extract(epoch FROM max(at) - now()) AS ahead_s, min(least(other, now())) AS since
FROM (
    (SELECT 'entitlement.outbox_events.created_at' AS column_name, 'producer' AS writer, created_at AS at, published_at AS other
     FROM entitlement.outbox_events
     WHERE status IN ('PENDING', 'IN_FLIGHT', 'PUBLISHED', 'FAILED') AND next_retry_at IS NULL AND created_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'entitlement.outbox_events.created_at', 'producer', created_at, published_at
     FROM entitlement.outbox_events
     WHERE status IN ('PENDING', 'IN_FLIGHT') AND next_retry_at IS NOT NULL AND created_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'entitlement.outbox_events.published_at', 'relay', published_at, created_at
     FROM entitlement.outbox_events
     WHERE status = 'PUBLISHED' AND published_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'notification.processed_events.processed_at', 'subscriber', processed_at, NULL
     FROM notification.processed_events
     WHERE processed_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'notification.notifications.created_at', 'subscriber', created_at, sent_at
     FROM notification.notifications
     WHERE status IN ('SENT', 'FAILED') AND created_at > now()
     LIMIT 20000)
    UNION ALL
    (SELECT 'notification.notifications.created_at', 'subscriber', created_at, occurred_at
     FROM notification.notifications
     WHERE status IN ('PENDING', 'PROCESSING') AND created_at > now()
     LIMIT 20000)
) later
GROUP BY 1, 2
ORDER BY ahead_s DESC;
