-- question: who holds which row now, and how often was it tried?
-- index: notifications_processing_idx
-- cost: index
-- answers: present
SELECT now() AS now, notification_id, locked_by, locked_at, lease_until, attempt_count
FROM notification.notifications
WHERE status = 'PROCESSING'
ORDER BY lease_until DESC NULLS LAST
LIMIT :max_rows;
