-- question: how long did the notifications take that were sent since each of some moments (created up to 1 h before)?
-- index: notifications_retention_sent_failed_idx
-- cost: scan
-- answers: window
WITH sent AS MATERIALIZED (
    SELECT sent_at, greatest(extract(epoch FROM sent_at - occurred_at), 0) AS delay_s
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) - interval '1 hour'
      AND sent_at >= CAST(:since AS timestamptz) AND sent_at <= CAST(:as_of AS timestamptz)
)
SELECT nth, count(sent_at) AS n, percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s) AS p95
FROM unnest(CAST(:begins AS timestamptz[])) WITH ORDINALITY AS moment (begin_at, nth)
LEFT JOIN sent ON sent_at >= begin_at
GROUP BY nth;
