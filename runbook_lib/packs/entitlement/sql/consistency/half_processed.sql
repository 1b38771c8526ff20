-- question: which events of the window have only one half: registered, or queued (of the last 20,000 of each)?
-- index: processed_events_processed_at_idx, processed_events_pkey, notifications_retention_*_idx, outbox_events_pkey, notifications_user_idx
-- cost: index
-- answers: window
WITH registered AS (
    SELECT event_id, processed_at FROM notification.processed_events
    WHERE processed_at >= CAST(:since AS timestamptz) AND processed_at <= CAST(:as_of AS timestamptz)
    ORDER BY processed_at DESC
    LIMIT 20000
), queued AS (
    -- Both halves carry the same instant; a minute more on either side costs nothing.
    SELECT event_id, notification_id, created_at FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= (SELECT min(processed_at) FROM registered) - interval '1 minute'
    UNION ALL
    SELECT event_id, notification_id, created_at FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
      AND created_at >= (SELECT min(processed_at) FROM registered) - interval '1 minute'
), newest AS (
    SELECT event_id, notification_id, created_at FROM (
        SELECT event_id, notification_id, created_at FROM notification.notifications
        WHERE status IN ('SENT', 'FAILED')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
        UNION ALL
        SELECT event_id, notification_id, created_at FROM notification.notifications
        WHERE status IN ('PENDING', 'PROCESSING')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    ) created
    ORDER BY created_at DESC
    LIMIT 20000
), unqueued AS MATERIALIZED (
    SELECT r.event_id, r.processed_at
    FROM registered r
    LEFT JOIN queued q ON q.event_id = r.event_id
    WHERE q.event_id IS NULL
), unseen AS MATERIALIZED (
    SELECT n.event_id, n.notification_id, n.created_at
    FROM newest n
    LEFT JOIN registered r ON r.event_id = n.event_id
    WHERE r.event_id IS NULL
)
SELECT 'registered_only' AS kind, u.event_id, CAST(NULL AS uuid) AS notification_id, u.processed_at AS at,
    -- Both are written at once: what is older than every notification had one, and it was deleted.
    coalesce(u.processed_at < (SELECT least(
        (SELECT min(created_at) FROM notification.notifications WHERE status IN ('SENT', 'FAILED')),
        (SELECT min(created_at) FROM notification.notifications WHERE status IN ('PENDING', 'PROCESSING'))
    )), true) AS emptied
FROM unqueued u
-- By its user it is found whatever time it has.
WHERE (SELECT true FROM notification.notifications n
       WHERE n.event_id = u.event_id AND n.user_id = (
           SELECT substring(o.aggregate_key FROM '^(.*):[^:]*$') FROM entitlement.outbox_events o WHERE o.event_id = u.event_id
       ) LIMIT 1) IS NULL
UNION ALL
SELECT 'queued_only', n.event_id, n.notification_id, n.created_at, false
FROM unseen n
WHERE (SELECT true FROM notification.processed_events p WHERE p.event_id = n.event_id LIMIT 1) IS NULL
LIMIT :max_rows;
