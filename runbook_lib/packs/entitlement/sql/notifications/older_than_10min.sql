-- question: the runbook's own: how many PENDING or PROCESSING were created over 10 minutes ago?
-- index: notifications_retention_active_idx
-- cost: scan
-- answers: present
SELECT count(*)
FROM notification.notifications
WHERE status IN ('PENDING', 'PROCESSING')
  AND created_at < now() - interval '10 minutes';
