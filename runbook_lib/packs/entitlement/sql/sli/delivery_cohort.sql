-- question: of the events that occurred in a span of seconds ago, how many notifications are sent, and after how long?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: index
-- answers: window
SELECT count(*) AS n, count(delay_s) AS done, percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s) AS p95
FROM (
    -- What was given up has no delay; greatest() takes NULL for 0.
    SELECT CASE WHEN sent_at IS NOT NULL THEN greatest(extract(epoch FROM sent_at - occurred_at), 0) END AS delay_s
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED') AND created_at >= CAST(:since AS timestamptz) - interval '10 seconds'
      AND occurred_at >= CAST(:since AS timestamptz) AND occurred_at < CAST(:until AS timestamptz)
      AND type <> 'MatchFound'
    UNION ALL
    SELECT NULL FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING') AND created_at >= CAST(:since AS timestamptz) - interval '10 seconds'
      AND occurred_at >= CAST(:since AS timestamptz) AND occurred_at < CAST(:until AS timestamptz)
      AND type <> 'MatchFound'
) cohort;
