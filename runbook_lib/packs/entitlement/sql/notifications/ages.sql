-- question: how old are the notifications that have not reached an end?
-- index: notifications_retention_active_idx
-- cost: index
-- answers: present
-- column: bucket number
-- column: from_s s
-- column: to_s s
-- column: n rows
SELECT bucket, min(age_s) AS from_s, max(age_s) AS to_s, count(*) AS n
FROM (
    SELECT
        extract(epoch FROM now() - created_at) AS age_s,
        width_bucket(
            extract(epoch FROM now() - created_at), ARRAY[1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600]
        ) AS bucket
    FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
) aged
GROUP BY bucket
ORDER BY bucket;
