-- question: whose notifications are being retried: all users' alike, or one user's or type's (of the newest 2,000)?
-- index: notifications_pending_idx
-- cost: index
-- answers: present
-- column: n rows
-- column: users number
-- column: types number
-- column: top_user_n rows
-- column: top_type_n rows
-- column: top_type text
SELECT count(*) AS n, count(DISTINCT user_id) AS users, count(DISTINCT type) AS types,
    max(of_user) AS top_user_n, max(of_type) AS top_type_n,
    mode() WITHIN GROUP (ORDER BY type) AS top_type
FROM (
    SELECT user_id, type, count(*) OVER (PARTITION BY user_id) AS of_user, count(*) OVER (PARTITION BY type) AS of_type
    FROM (
        SELECT user_id, type, attempt_count FROM notification.notifications
        WHERE status = 'PENDING' AND next_retry_at IS NOT NULL
        ORDER BY next_retry_at DESC
        LIMIT 2000
    ) newest
    WHERE attempt_count > 0
) tried;
