-- question: how often were unpublished and given-up rows tried (of 5,000 of each)?
-- index: outbox_pick_idx, notifications_pending_idx
-- cost: index
-- answers: present
SELECT what, attempt_count, count(*) AS n
FROM (
    (SELECT 'outbox, unpublished' AS what, attempt_count FROM entitlement.outbox_events
     WHERE status IN ('PENDING', 'IN_FLIGHT')
     LIMIT 5000)
    UNION ALL
    (SELECT 'outbox, FAILED', attempt_count FROM entitlement.outbox_events
     WHERE status = 'FAILED' AND created_at > CAST(:since AS timestamptz) - interval '365 seconds'
     ORDER BY next_retry_at DESC, created_at DESC
     LIMIT 5000)
    UNION ALL
    (SELECT 'notifications, FAILED', attempt_count FROM notification.notifications
     WHERE status = 'FAILED' AND created_at > CAST(:since AS timestamptz) - interval '365 seconds'
     ORDER BY next_retry_at DESC, created_at DESC
     LIMIT 5000)
) tried
GROUP BY 1, 2
ORDER BY 1, 2
LIMIT :max_rows;
