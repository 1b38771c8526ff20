-- question: which notifications do these events have?
-- index: the keys of outbox_events and processed_events, notification_dlq_event_idx, notifications_pkey, notifications_retention_*_idx, notifications_user_idx
-- cost: index
-- answers: window
-- There is no index on the event. It is met by the instant that it shares with its registration, by its dead letter, and
-- among the notifications of its user.
WITH asked AS MATERIALIZED (
    SELECT unnest(CAST(:ids AS uuid[])) AS event_id
), registered AS MATERIALIZED (
    SELECT p.event_id, p.processed_at FROM asked JOIN notification.processed_events p USING (event_id)
), met AS MATERIALIZED (
    SELECT n.notification_id, n.event_id, n.user_id, n.type FROM registered r JOIN notification.notifications n
        ON n.status IN ('SENT', 'FAILED') AND n.created_at = r.processed_at AND n.event_id = r.event_id
    UNION ALL
    SELECT n.notification_id, n.event_id, n.user_id, n.type FROM registered r JOIN notification.notifications n
        ON n.status IN ('PENDING', 'PROCESSING') AND n.created_at = r.processed_at AND n.event_id = r.event_id
    UNION ALL
    SELECT n.notification_id, n.event_id, n.user_id, n.type
    FROM asked JOIN notification.notification_dlq d USING (event_id)
    JOIN notification.notifications n ON n.notification_id = d.notification_id
    UNION ALL
    SELECT notification_id, event_id, user_id, type FROM notification.notifications
    WHERE notification_id = CAST(:id AS uuid)
), users AS MATERIALIZED (
    -- All matches are filed under one user.
    SELECT user_id FROM met WHERE type <> 'MatchFound'
    UNION
    SELECT coalesce(o.payload ->> 'user_id', regexp_replace(o.aggregate_key, ':[^:]*$', ''))
    FROM asked JOIN entitlement.outbox_events o USING (event_id)
), found AS MATERIALIZED (
    SELECT notification_id FROM met
    UNION
    SELECT n.notification_id FROM users JOIN notification.notifications n USING (user_id)
    WHERE n.event_id = ANY (CAST(:ids AS uuid[]))
)
SELECT n.event_id, n.notification_id, n.user_id, n.type,
    n.payload_json ->> 'stock_keeping_unit' AS stock_keeping_unit, n.payload_json ->> 'trace_id' AS trace_id,
    n.occurred_at, n.status, n.attempt_count, n.next_retry_at, n.created_at, n.sent_at,
    n.locked_by, n.locked_at, n.lease_until,
    CASE WHEN n.type <> 'MatchFound' THEN (
        SELECT count(*) FROM unnest(CAST(:fields AS text[])) AS field WHERE coalesce(n.payload_json ->> field, '') = ''
    ) END AS lacks
FROM found JOIN notification.notifications n USING (notification_id)
ORDER BY n.created_at, n.notification_id
LIMIT :max_rows;
