-- question: how many notifications were sent in each 10 s, how many of them late or after a try that failed, and how many were given up?
-- index: notifications_retention_sent_failed_idx, scan of notification_dlq
-- cost: scan
-- answers: window
-- reuse: 15 s
SELECT what, CAST(floor(extract(epoch FROM CAST(:as_of AS timestamptz) - at) / 10) AS integer) AS tens_ago,
    count(*) AS n,
    count(*) FILTER (WHERE tried OR slow) AS late,
    count(*) FILTER (WHERE tried) AS tried,
    max(at) FILTER (WHERE tried OR slow) AS last_late
FROM (
    SELECT 'sent' AS what, sent_at AS at, attempt_count > 0 AS tried,
        sent_at - occurred_at >= interval '1 second' * CAST(:limit_s AS double precision) AS slow
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) - interval '1 hour'
      AND sent_at >= CAST(:since AS timestamptz) AND sent_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT 'given_up', created_at, true, true
    FROM notification.notification_dlq
    WHERE created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
) through
GROUP BY 1, 2
ORDER BY 2
LIMIT :max_rows;
