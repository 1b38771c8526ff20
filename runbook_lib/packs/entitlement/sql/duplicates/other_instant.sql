-- question: which notifications of the window (of the last 20,000) were not registered in the same instant?
-- index: notifications_retention_*_idx, processed_events_processed_at_idx, processed_events_pkey
-- cost: index
-- answers: window
WITH recent AS MATERIALIZED (
    SELECT * FROM (
        SELECT event_id, notification_id, type, created_at FROM notification.notifications
        WHERE status IN ('SENT', 'FAILED')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
        UNION ALL
        SELECT event_id, notification_id, type, created_at FROM notification.notifications
        WHERE status IN ('PENDING', 'PROCESSING')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    ) created
    ORDER BY created_at DESC
    LIMIT 20000
), registered AS MATERIALIZED (
    SELECT event_id, processed_at FROM notification.processed_events
    WHERE processed_at >= (SELECT min(created_at) FROM recent)
      AND processed_at <= (SELECT max(created_at) FROM recent)
    ORDER BY processed_at DESC
    LIMIT 60000
), apart AS MATERIALIZED (
    SELECT n.event_id, n.notification_id, n.type, n.created_at
    FROM recent n
    LEFT JOIN registered r ON r.event_id = n.event_id AND r.processed_at = n.created_at
    WHERE r.event_id IS NULL
    ORDER BY n.created_at DESC
    LIMIT :max_rows
)
SELECT a.event_id, a.notification_id, a.type, a.created_at, p.processed_at,
    extract(epoch FROM p.processed_at - a.created_at) AS later_s
FROM apart a
CROSS JOIN LATERAL (
    SELECT processed_at FROM notification.processed_events p WHERE p.event_id = a.event_id LIMIT 1
) p
WHERE p.processed_at <> a.created_at
ORDER BY a.created_at DESC
LIMIT :max_rows;
