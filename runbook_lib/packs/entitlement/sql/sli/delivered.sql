-- question: how long did the notifications take that were sent since a moment (created up to 1 h before it)?
-- index: notifications_retention_sent_failed_idx
-- cost: scan
-- answers: window
-- reuse: 15 s
SELECT count(*) AS n,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s) AS p95
FROM (
    SELECT greatest(extract(epoch FROM sent_at - occurred_at), 0) AS delay_s
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) - interval '1 hour'
      AND sent_at >= CAST(:since AS timestamptz) AND sent_at <= CAST(:as_of AS timestamptz)
) sent;
