-- question: which events of the window have more than one notification (of the last 20,000), and how many are sent?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: index
-- answers: window
SELECT event_id, count(*) AS n, min(created_at) AS first, max(created_at) AS last,
    count(*) FILTER (WHERE status = 'SENT') AS sent,
    count(*) FILTER (WHERE status IN ('PENDING', 'PROCESSING')) AS waiting
FROM (
    SELECT event_id, created_at, status FROM (
        SELECT event_id, created_at, status FROM notification.notifications
        WHERE status IN ('SENT', 'FAILED')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
        UNION ALL
        SELECT event_id, created_at, status FROM notification.notifications
        WHERE status IN ('PENDING', 'PROCESSING')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    ) created
    ORDER BY created_at DESC
    LIMIT 20000
) recent
GROUP BY event_id
HAVING count(*) > 1
ORDER BY last DESC
LIMIT :max_rows;
