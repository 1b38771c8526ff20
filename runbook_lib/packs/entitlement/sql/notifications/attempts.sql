-- question: how often have the unfinished notifications been tried (of the oldest 5,000)?
-- index: notifications_retention_active_idx
-- cost: index
-- answers: present
-- A new row is due at its `created_at`, whatever clock wrote that.
SELECT attempt_count, count(*) AS n, count(*) FILTER (WHERE next_retry_at > now()) AS waiting,
    count(*) FILTER (
        WHERE attempt_count = 0 AND next_retry_at > now() AND next_retry_at > created_at
    ) AS postponed
FROM (
    SELECT attempt_count, next_retry_at, created_at
    FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
    ORDER BY created_at
    LIMIT 5000
) oldest
GROUP BY attempt_count
ORDER BY attempt_count;
