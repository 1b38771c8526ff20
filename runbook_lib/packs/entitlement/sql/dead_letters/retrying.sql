-- question: whose notifications are being retried: all users' alike, or one user's (of the newest 2,000)?
-- index: notifications_pending_idx
-- cost: index
-- answers: present
SELECT count(*) AS n, count(DISTINCT user_id) AS users, max(of_user) AS top_user_n
FROM (
    SELECT user_id, count(*) OVER (PARTITION BY user_id) AS of_user
    FROM (
        SELECT user_id, attempt_count FROM notification.notifications
        WHERE status = 'PENDING' AND next_retry_at IS NOT NULL
        ORDER BY next_retry_at DESC
        LIMIT 2000
    ) newest
    WHERE attempt_count > 0
) tried;
