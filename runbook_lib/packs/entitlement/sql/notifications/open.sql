-- question: how many notifications have not reached an end, whatever they wait for? The anchor of backlog(t)
-- index: notifications_retention_active_idx
-- cost: index
-- answers: window
-- column: now time
-- column: n rows
-- column: oldest time
SELECT now() AS now, count(*) AS n, min(created_at) AS oldest
FROM notification.notifications
WHERE status IN ('PENDING', 'PROCESSING');
