-- question: which FAILED notifications have no dead letter (of 20,000)?
-- index: notifications_pending_idx, notification_dlq_notification_id_uniq
-- cost: index
-- answers: present
SELECT notification_id, event_id, status, attempt_count, created_at
FROM (
    SELECT notification_id, event_id, status, attempt_count, created_at
    FROM notification.notifications
    WHERE status = 'FAILED'
    ORDER BY next_retry_at DESC, created_at DESC
    LIMIT 20000
) failed
WHERE (SELECT true FROM notification.notification_dlq d WHERE d.notification_id = failed.notification_id) IS NULL
LIMIT :max_rows;
