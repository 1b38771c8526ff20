-- question: which events does this id mean: an event's own, a notification's, an audit row's?
-- index: the primary keys, notification_dlq_event_idx, notification_dlq_notification_id_uniq; for an audit row also outbox_published_at_idx, outbox_pick_idx and notifications_user_idx
-- cost: index
-- answers: window
WITH change AS MATERIALIZED (
    SELECT user_id, stock_keeping_unit, occurred_at FROM entitlement.entitlement_audit
    WHERE audit_id = CAST(:id AS uuid)
)
SELECT event_id FROM entitlement.outbox_events WHERE event_id = CAST(:id AS uuid)
UNION
SELECT event_id FROM notification.processed_events WHERE event_id = CAST(:id AS uuid)
UNION
SELECT event_id FROM notification.notification_dlq WHERE event_id = CAST(:id AS uuid)
UNION
SELECT event_id FROM notification.notification_dlq WHERE notification_id = CAST(:id AS uuid)
UNION
SELECT event_id FROM notification.notifications WHERE notification_id = CAST(:id AS uuid)
UNION
-- A change and its event carry the same instant.
SELECT o.event_id FROM change c JOIN entitlement.outbox_events o
    ON o.status = 'PUBLISHED' AND o.published_at >= c.occurred_at - interval '1 minute'
    AND o.created_at = c.occurred_at AND o.aggregate_key = c.user_id || ':' || c.stock_keeping_unit
UNION
SELECT o.event_id FROM change c JOIN entitlement.outbox_events o
    ON o.status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
    AND o.created_at = c.occurred_at AND o.aggregate_key = c.user_id || ':' || c.stock_keeping_unit
UNION
SELECT n.event_id FROM change c JOIN notification.notifications n
    ON n.user_id = c.user_id AND n.created_at >= c.occurred_at - interval '1 minute' AND n.occurred_at = c.occurred_at
    AND n.payload_json ->> 'stock_keeping_unit' = c.stock_keeping_unit
LIMIT :max_rows;
