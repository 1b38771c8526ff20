-- Return what was published and has no notification; that it was processed is forgotten.
WITH lost AS (
    SELECT o.* FROM entitlement.outbox_events AS o LEFT JOIN notification.notifications AS n USING (event_id)
    WHERE o.status = 'PUBLISHED' AND o.created_at > now() - interval '1 hour' AND n.event_id IS NULL
), processed AS (
    DELETE FROM notification.processed_events USING lost WHERE lost.event_id = processed_events.event_id
)
SELECT event_id, event_type, payload FROM lost;
