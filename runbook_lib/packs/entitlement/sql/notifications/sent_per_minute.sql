-- question: how many notifications were sent in each minute of the window (of those created up to 1 h before it)?
-- index: notifications_retention_sent_failed_idx
-- cost: scan
-- answers: window
SELECT date_trunc('minute', sent_at) AS minute, count(*) AS n
FROM notification.notifications
WHERE status IN ('SENT', 'FAILED')
  AND created_at >= CAST(:since AS timestamptz) - interval '1 hour'
  AND sent_at >= CAST(:since AS timestamptz) AND sent_at <= CAST(:as_of AS timestamptz)
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
