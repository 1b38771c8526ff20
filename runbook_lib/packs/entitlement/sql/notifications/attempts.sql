-- question: how often have the unfinished notifications been tried (of the oldest 5,000)?
-- index: notifications_retention_active_idx
-- cost: index
-- answers: present
-- column: attempt_count number
-- column: n rows
-- column: waiting rows
SELECT attempt_count, count(*) AS n, count(*) FILTER (WHERE next_retry_at > now()) AS waiting
FROM (
    SELECT attempt_count, next_retry_at
    FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
    ORDER BY created_at
    LIMIT 5000
) oldest
GROUP BY attempt_count
ORDER BY attempt_count;
