-- question: how many notifications came and were sent in each minute, how many of them late, from when to when?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: scan
-- answers: window
-- There is no index on sent_at: what was sent since then was created up to 1 h before.
SELECT date_trunc('minute', at) AS minute, sum(arrived) AS arrived, sum(gone) AS n,
    count(*) FILTER (WHERE at - occurred_at >= interval '1 second' * CAST(:limit_s AS double precision)) AS slow,
    min(occurred_at) FILTER (WHERE at - occurred_at >= interval '1 second' * CAST(:slow_s AS double precision))
        AS first_slow,
    max(at) FILTER (WHERE at - occurred_at >= interval '1 second' * CAST(:limit_s AS double precision)) AS last_slow
FROM (
    SELECT sent_at AS at, 0 AS arrived, 1 AS gone, occurred_at FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) - interval '1 hour'
      AND sent_at >= CAST(:since AS timestamptz) AND sent_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT created_at, 1, 0, NULL FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= CAST(:arrived_since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT created_at, 1, 0, NULL FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
      AND created_at >= CAST(:arrived_since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
) flows
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
