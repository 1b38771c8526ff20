-- question: which changes of rights of the last 24 h have no outbox event of the same user, item and instant, and does a notification show that they had one?
-- index: scan of entitlement_audit, which has no index and is never cleaned; notifications_user_idx
-- cost: scan
-- answers: window
WITH changes AS MATERIALIZED (
    SELECT audit_id, occurred_at, user_id, stock_keeping_unit, action, user_id || ':' || stock_keeping_unit AS item
    FROM entitlement.entitlement_audit
    -- Published events are removed after 24 h, whatever moment is looked at: the oldest minute is left out.
    WHERE occurred_at >= now() - interval '23 hours 59 minutes'
      AND occurred_at >= CAST(:as_of AS timestamptz) - interval '23 hours 59 minutes'
), paired AS MATERIALIZED (
    SELECT c.*, coalesce(c.item, o.aggregate_key) AS of_item, o.event_id
    FROM changes c
    FULL JOIN (
        SELECT event_id, aggregate_key, created_at FROM entitlement.outbox_events
        WHERE created_at >= now() - interval '23 hours 59 minutes'
           OR published_at >= now() - interval '23 hours 59 minutes'
    ) o ON o.aggregate_key = c.item AND o.created_at = c.occurred_at
    WHERE c.audit_id IS NULL OR o.event_id IS NULL
), lone AS (
    -- A change and an event of one item that differ in the time alone are a pair: the clock of one is wrong.
    SELECT *, row_number() OVER (PARTITION BY of_item ORDER BY audit_id IS NULL, occurred_at) AS nth,
        count(event_id) OVER (PARTITION BY of_item) AS events
    FROM paired
)
SELECT a.audit_id, a.occurred_at, a.user_id, a.stock_keeping_unit, a.action,
    -- The event's notification shows that there was one.
    (SELECT n.status FROM notification.notifications n
     WHERE n.user_id = a.user_id AND n.created_at >= a.occurred_at - interval '1 minute'
       AND n.occurred_at = a.occurred_at AND n.payload_json ->> 'stock_keeping_unit' = a.stock_keeping_unit
     LIMIT 1) AS notification
FROM lone a
WHERE a.audit_id IS NOT NULL AND a.nth > a.events AND a.occurred_at <= CAST(:as_of AS timestamptz)
ORDER BY a.occurred_at DESC
LIMIT :max_rows;
