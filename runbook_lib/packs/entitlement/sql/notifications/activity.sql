-- question: when did the delivery worker last claim, send or try, and how much came and went in the last minute?
-- index: notifications_pending_idx, notifications_processing_idx, notifications_retention_*_idx
-- cost: index
-- answers: present
-- A time that is further ahead than clocks differ is not read: 4.3.5 counts such rows.
WITH newest AS (
    -- The worker takes the oldest first, so what was created last among SENT was sent last.
    SELECT sent_at FROM notification.notifications
    WHERE status = 'SENT' AND next_retry_at IS NULL AND created_at <= now() + interval '5 minutes'
    ORDER BY created_at DESC
    LIMIT 5000
), tried AS (
    -- A failed try leaves only its next_retry_at: batch start + backoff x 0.5 to 1.5. The latest start that fits;
    -- a later retry time (5 s for its clock) has another backoff, and tells nothing.
    SELECT least(now(), next_retry_at - 0.5 * backoff) AS at
    FROM (
        SELECT next_retry_at, attempt_count, interval '1 second' * least(60, 2 ^ (attempt_count - 1)) AS backoff
        FROM notification.notifications
        WHERE status = 'PENDING' AND next_retry_at IS NOT NULL
        ORDER BY next_retry_at DESC
        LIMIT 2000
    ) latest
    WHERE attempt_count > 0 AND next_retry_at <= now() + 1.5 * backoff + interval '5 s'
)
SELECT
    now() AS now,
    held.last_claim,
    (SELECT max(sent_at) FROM newest WHERE sent_at <= now() + interval '5 minutes') AS last_sent,
    (SELECT max(at) FROM tried) AS last_try,
    (SELECT count(*) FROM newest WHERE sent_at > now() - interval '1 minute'
       AND sent_at <= now() + interval '5 minutes') AS sent_1m,
    (SELECT count(*) FROM notification.notifications
     WHERE status IN ('SENT', 'FAILED')
       AND created_at > now() - interval '1 minute' AND created_at <= now() + interval '5 minutes')
    + (SELECT count(*) FROM notification.notifications
       WHERE status IN ('PENDING', 'PROCESSING')
         AND created_at > now() - interval '1 minute' AND created_at <= now() + interval '5 minutes') AS arrived_1m,
    held.workers
FROM (
    SELECT max(locked_at) AS last_claim, string_agg(DISTINCT locked_by, ', ') AS workers
    FROM notification.notifications
    WHERE status = 'PROCESSING'
) held;
