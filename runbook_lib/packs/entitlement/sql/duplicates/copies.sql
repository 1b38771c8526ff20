-- question: the notifications of each event of the window that has more than one (of the last 20,000), side by side
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: index
-- answers: window
WITH recent AS MATERIALIZED (
    SELECT * FROM (
        SELECT notification_id, event_id, user_id, type, status, created_at, sent_at, attempt_count, locked_by
        FROM notification.notifications
        WHERE status IN ('SENT', 'FAILED')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
        UNION ALL
        SELECT notification_id, event_id, user_id, type, status, created_at, sent_at, attempt_count, locked_by
        FROM notification.notifications
        WHERE status IN ('PENDING', 'PROCESSING')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    ) created
    ORDER BY created_at DESC
    LIMIT 20000
), doubled AS (
    SELECT event_id, max(created_at) AS last
    FROM recent
    GROUP BY event_id
    HAVING count(*) > 1
)
SELECT r.event_id, r.notification_id, r.user_id, r.type, r.status, r.created_at, r.sent_at, r.attempt_count, r.locked_by
FROM doubled d
JOIN recent r ON r.event_id = d.event_id
ORDER BY d.last DESC, r.event_id, r.created_at
LIMIT :max_rows;
