-- question: which dead letters of deliveries do these events have?
-- index: notification_dlq_event_idx
-- cost: index
-- answers: window
-- column: event_id id
-- column: notification_id id
-- column: created_at time
-- column: error_message text
SELECT event_id, notification_id, created_at, error_message
FROM notification.notification_dlq
WHERE event_id = ANY (CAST(:ids AS uuid[]))
ORDER BY created_at
LIMIT :max_rows;
