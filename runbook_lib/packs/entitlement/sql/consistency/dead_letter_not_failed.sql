-- question: which dead letters written since a moment belong to a notification that is not FAILED?
-- index: scan of notification_dlq, notifications_pkey
-- cost: scan
-- answers: present
SELECT d.dlq_id, d.notification_id, d.event_id, n.status, d.created_at
FROM notification.notification_dlq d
JOIN notification.notifications n ON n.notification_id = d.notification_id
WHERE d.created_at >= CAST(:since AS timestamptz) AND n.status <> 'FAILED'
ORDER BY d.created_at DESC
LIMIT :max_rows;
