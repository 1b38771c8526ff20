-- question: bucket by bucket of an incident: how many users had a notification that was late or given up?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: scan
-- answers: window
-- By the time of the event. The row without a bucket counts every user of the window once.
SELECT bucket, count(DISTINCT user_id) AS users
FROM (
    SELECT user_id, CAST(floor(extract(epoch FROM occurred_at - CAST(:since AS timestamptz))
        / CAST(:bucket_s AS integer)) AS integer) AS bucket
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= CAST(:low AS timestamptz) AND created_at < CAST(:high AS timestamptz)
      AND occurred_at >= CAST(:since AS timestamptz) AND occurred_at < CAST(:until AS timestamptz)
      AND (status = 'FAILED' OR sent_at - occurred_at >= interval '1 second' * CAST(:limit_s AS double precision))
    UNION ALL
    SELECT user_id, CAST(floor(extract(epoch FROM occurred_at - CAST(:since AS timestamptz))
        / CAST(:bucket_s AS integer)) AS integer)
    FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
      AND occurred_at >= CAST(:since AS timestamptz)
      AND occurred_at <= CAST(:until AS timestamptz) - interval '1 second' * CAST(:limit_s AS double precision)
) late
GROUP BY GROUPING SETS ((bucket), ())
ORDER BY bucket
LIMIT :max_rows;
