-- question: the runbook's own: how many notifications are in each status?
-- index: scan
-- cost: scan
-- answers: present
-- column: status text
-- column: count rows
SELECT status, count(*)
FROM notification.notifications
GROUP BY status
ORDER BY status;
