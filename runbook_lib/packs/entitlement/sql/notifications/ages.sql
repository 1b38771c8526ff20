-- question: how old are the notifications that have not reached an end?
-- index: notifications_retention_active_idx
-- cost: index
-- answers: present
SELECT
    width_bucket(
        extract(epoch FROM now() - created_at), ARRAY[1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600]
    ) AS bucket,
    count(*) AS n
FROM notification.notifications
WHERE status IN ('PENDING', 'PROCESSING')
GROUP BY bucket
ORDER BY bucket;
