-- question: the runbook's own: how many notifications are in each status?
-- index: scan
-- cost: scan
-- answers: present
SELECT status, count(*)
FROM notification.notifications
GROUP BY status
ORDER BY status;
