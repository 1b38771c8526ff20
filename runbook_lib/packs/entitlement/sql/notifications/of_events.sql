-- question: which of these events have a notification, or a dead letter that is left of one?
-- index: outbox_events_pkey, notifications_user_idx, notification_dlq_event_idx
-- cost: index
-- answers: window
WITH asked AS MATERIALIZED (
    SELECT event_id, substring(aggregate_key FROM '^(.*):[^:]*$') AS user_id FROM entitlement.outbox_events
    WHERE event_id = ANY (CAST(:event_ids AS uuid[]))
), traced AS (
    SELECT event_id, coalesce(
            (SELECT n.status FROM notification.notifications n
             WHERE n.user_id = asked.user_id AND n.event_id = asked.event_id LIMIT 1),
            (SELECT 'FAILED' FROM notification.notification_dlq d WHERE d.event_id = asked.event_id LIMIT 1)
        ) AS notification
    FROM asked
)
SELECT event_id, notification FROM traced WHERE notification IS NOT NULL
LIMIT :max_rows;
