-- question: which tries to deliver certainly failed since a moment, told by the retry time that each left behind?
-- index: notifications_pending_idx
-- cost: index
-- answers: present
-- reuse: 15 s
-- A retry time is batch start + backoff x 0.5 to 1.5, so the try was not before retry time - backoff x 1.5.
SELECT
    part,
    count(*) FILTER (WHERE next_retry_at - interval '1.5 seconds' * backoff_s >= CAST(:tried_since AS timestamptz)) AS failed,
    count(*) FILTER (WHERE next_retry_at - interval '1.5 seconds' * backoff_s >= now() - interval '2 seconds') AS failed_now,
    count(*) FILTER (WHERE next_retry_at > now()) AS waiting,
    count(*) FILTER (WHERE next_retry_at <= now()) AS due_again
FROM (
    SELECT 'delivery' AS part, next_retry_at, attempt_count, least(60, 2 ^ (attempt_count - 1)) AS backoff_s
    FROM notification.notifications
    WHERE status = 'PENDING' AND next_retry_at IS NOT NULL AND attempt_count > 0
    ORDER BY next_retry_at DESC
    LIMIT 20000
) tried
GROUP BY part;
