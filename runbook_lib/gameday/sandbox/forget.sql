-- Delete every row of the drill's users.
WITH gone AS (
    DELETE FROM notification.notifications WHERE user_id LIKE 'drill-%' RETURNING notification_id
), letters AS (
    DELETE FROM notification.notification_dlq WHERE notification_id IN (SELECT notification_id FROM gone)
), outbox AS (
    DELETE FROM entitlement.outbox_events WHERE aggregate_key LIKE 'drill-%' RETURNING event_id
), processed AS (
    DELETE FROM notification.processed_events WHERE event_id IN (SELECT event_id FROM outbox)
), audit AS (
    DELETE FROM entitlement.entitlement_audit WHERE user_id LIKE 'drill-%'
)
DELETE FROM entitlement.entitlements WHERE user_id LIKE 'drill-%';
