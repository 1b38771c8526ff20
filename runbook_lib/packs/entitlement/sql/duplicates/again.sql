-- question: which late notifications of the window (the last 500) repeat an earlier one, or come after 30 days?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx, notifications_user_idx
-- cost: index
-- answers: window
WITH recent AS MATERIALIZED (
    SELECT * FROM (
        SELECT notification_id, event_id, user_id, type, status, occurred_at, created_at
        FROM notification.notifications
        WHERE status IN ('SENT', 'FAILED')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
        UNION ALL
        SELECT notification_id, event_id, user_id, type, status, occurred_at, created_at
        FROM notification.notifications
        WHERE status IN ('PENDING', 'PROCESSING')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    ) created
    ORDER BY created_at DESC
    LIMIT 20000
), late AS MATERIALIZED (
    -- What is queued over a minute after it happened was late, or is a second copy.
    SELECT * FROM recent
    WHERE created_at > occurred_at + interval '1 minute'
    ORDER BY created_at DESC
    LIMIT 500
)
SELECT l.event_id, l.notification_id, l.user_id, l.type, l.status, l.occurred_at, l.created_at,
    e.notification_id AS earlier_id, e.created_at AS earlier_at
FROM late l
LEFT JOIN LATERAL (
    -- event_id has no index. But both copies are of one user, and the first was queued soon after the event.
    SELECT f.notification_id, f.created_at
    FROM (
        SELECT n.notification_id, n.event_id, n.created_at
        FROM notification.notifications n
        WHERE n.user_id = l.user_id
          AND n.created_at >= l.occurred_at - interval '5 seconds' AND n.created_at < l.created_at
        ORDER BY n.created_at
        LIMIT 100
    ) f
    WHERE f.event_id = l.event_id
    ORDER BY f.created_at
    LIMIT 1
) e ON true
WHERE e.notification_id IS NOT NULL OR l.created_at > l.occurred_at + interval '30 days'
ORDER BY l.created_at DESC
LIMIT :max_rows;
