-- question: how old are the notifications that have not reached an end?
-- index: notifications_retention_active_idx
-- cost: index
-- answers: present
-- A time that is further ahead than clocks differ is not read: 4.3.5 counts such rows.
SELECT
    width_bucket(
        extract(epoch FROM now() - created_at), ARRAY[1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600]
    ) AS bucket,
    count(*) AS n
FROM notification.notifications
WHERE status IN ('PENDING', 'PROCESSING') AND created_at <= now() + interval '5 minutes'
GROUP BY bucket
ORDER BY bucket;
