-- question: how often have the unfinished notifications been tried (of the oldest 5,000)?
-- index: notifications_retention_active_idx
-- cost: index
-- answers: present
-- A new row is due at its `created_at`, whatever clock wrote that. A retry time later than any wait that the worker
-- sets after so many tries (and 5 s for its clock) comes from another setting, or from somebody's hand.
SELECT attempt_count, count(*) AS n, count(*) FILTER (WHERE next_retry_at > now()) AS waiting,
    count(*) FILTER (
        WHERE CASE attempt_count
            WHEN 0 THEN next_retry_at > greatest(now(), created_at)
            ELSE next_retry_at > now() + interval '1.5 seconds' * least(60, 2 ^ (attempt_count - 1)) + interval '5 s'
        END
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
