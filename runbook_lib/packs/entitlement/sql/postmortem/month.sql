-- question: how many notifications came to an end in 28 days?
-- index: notifications_retention_sent_failed_idx
-- cost: scan
-- answers: window
SELECT count(*) AS n
FROM notification.notifications
WHERE status IN ('SENT', 'FAILED')
  AND created_at >= CAST(:as_of AS timestamptz) - interval '28 days' AND created_at <= CAST(:as_of AS timestamptz);
