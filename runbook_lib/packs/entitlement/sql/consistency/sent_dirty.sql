-- question: the runbook's own: how many SENT notifications, of all, still carry a lock or a retry time?
-- index: scan
-- cost: scan
-- answers: present
SELECT count(*) AS n
FROM notification.notifications
WHERE status = 'SENT'
  AND (locked_by IS NOT NULL OR next_retry_at IS NOT NULL);
