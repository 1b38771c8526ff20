-- question: which dead letters of deliveries do these events have?
-- index: notification_dlq_event_idx
-- cost: index
-- answers: window
SELECT event_id, notification_id, created_at, error_message
FROM notification.notification_dlq
WHERE event_id = ANY (CAST(:ids AS uuid[]))
ORDER BY created_at
LIMIT :max_rows;
