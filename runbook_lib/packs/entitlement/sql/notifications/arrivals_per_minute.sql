-- question: how many notifications were created in each minute of the window?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: scan
-- answers: window
SELECT date_trunc('minute', created_at) AS minute, count(*) AS n
FROM (
    SELECT created_at FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT created_at FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
      AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
) created
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
