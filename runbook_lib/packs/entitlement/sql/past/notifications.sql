-- question: stretch by stretch, how many notifications came, ended, and waited between (of a span of creation)?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx, scan of notification_dlq
-- cost: scan
-- answers: window
-- continued in: past/levels
-- A notification waits from its creation to the batch start in which it was sent or given up, as its dead letter tells.
-- Those that wait to this day are there `with_open`.
WITH found AS (
    SELECT n.created_at, coalesce(n.sent_at, d.created_at) AS ended_at, n.attempt_count, n.status = 'FAILED' AS given_up
    FROM notification.notifications n
    LEFT JOIN notification.notification_dlq d ON d.notification_id = n.notification_id AND n.status = 'FAILED'
    WHERE n.status IN ('SENT', 'FAILED')
      AND n.created_at >= CAST(:low AS timestamptz) AND n.created_at < CAST(:high AS timestamptz)
    UNION ALL
    SELECT created_at, NULL, attempt_count, false
    FROM notification.notifications
    WHERE CAST(:with_open AS boolean) AND status IN ('PENDING', 'PROCESSING')
      AND created_at < CAST(:until AS timestamptz)
)
