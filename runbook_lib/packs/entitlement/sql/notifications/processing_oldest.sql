-- question: the runbook's own: which 50 rows have been PROCESSING for longest?
-- index: notifications_processing_idx
-- cost: scan
-- answers: present
SELECT notification_id, event_id, locked_by, locked_at, lease_until
FROM notification.notifications
WHERE status = 'PROCESSING'
ORDER BY locked_at
LIMIT 50;
