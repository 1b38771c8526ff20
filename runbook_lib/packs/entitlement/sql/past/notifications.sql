-- question: stretch by stretch, how many notifications came, ended, and waited between (of a span of creation)?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx, notification_dlq_notification_id_uniq
-- cost: scan
-- answers: window
-- continued in: past/levels
-- A notification waits from its creation to the batch start in which it was sent or given up, as its dead letter tells.
-- Those that wait to this day are there `with_open`.
WITH found AS (
    SELECT created_at, sent_at AS ended_at, attempt_count, false AS given_up
    FROM notification.notifications
    WHERE status = 'SENT'
      AND created_at >= CAST(:low AS timestamptz) AND created_at < CAST(:high AS timestamptz)
    UNION ALL
    -- Apart, as these are few: else the dead letters are all read.
    SELECT n.created_at, coalesce(n.sent_at, d.created_at), n.attempt_count, true
    FROM notification.notifications n
    LEFT JOIN notification.notification_dlq d ON d.notification_id = n.notification_id
    WHERE n.status = 'FAILED'
      AND n.created_at >= CAST(:low AS timestamptz) AND n.created_at < CAST(:high AS timestamptz)
    UNION ALL
    SELECT created_at, NULL, attempt_count, false
    FROM notification.notifications
    WHERE CAST(:with_open AS boolean) AND status IN ('PENDING', 'PROCESSING')
      AND created_at < CAST(:until AS timestamptz)
)
