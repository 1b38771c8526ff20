-- question: how many notifications were sent in each minute, how many of them later than NOTI-B allows, from when to when?
-- index: notifications_retention_sent_failed_idx
-- cost: scan
-- answers: window
SELECT date_trunc('minute', sent_at) AS minute, count(*) AS n,
    count(*) FILTER (WHERE sent_at - occurred_at >= interval '1 second' * CAST(:limit_s AS double precision)) AS slow,
    min(occurred_at) FILTER (WHERE sent_at - occurred_at >= interval '1 second' * CAST(:slow_s AS double precision))
        AS first_slow,
    max(sent_at) FILTER (WHERE sent_at - occurred_at >= interval '1 second' * CAST(:limit_s AS double precision))
        AS last_slow
FROM notification.notifications
WHERE status IN ('SENT', 'FAILED')
  AND created_at >= CAST(:since AS timestamptz) - interval '1 hour'
  AND sent_at >= CAST(:since AS timestamptz) AND sent_at <= CAST(:as_of AS timestamptz)
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
