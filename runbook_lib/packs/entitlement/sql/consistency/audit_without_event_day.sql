-- question: which changes of rights of the last 24 h have no outbox event of the same user, item and instant, and does a notification show that they had one?
-- index: scan of entitlement_audit, which has no index and is never cleaned; notifications_user_idx
-- cost: scan
-- answers: window
SELECT a.audit_id, a.occurred_at, a.user_id, a.stock_keeping_unit, a.action,
    -- The event's notification shows that there was one.
    (SELECT n.status FROM notification.notifications n
     WHERE n.user_id = a.user_id AND n.created_at >= a.occurred_at - interval '1 minute'
       AND n.occurred_at = a.occurred_at AND n.payload_json ->> 'stock_keeping_unit' = a.stock_keeping_unit
     LIMIT 1) AS notification
FROM entitlement.entitlement_audit a
LEFT JOIN entitlement.outbox_events o
    ON o.aggregate_key = a.user_id || ':' || a.stock_keeping_unit AND o.created_at = a.occurred_at
-- Published events are removed after 24 h, whatever moment is looked at: the oldest minute is left out.
WHERE a.occurred_at >= now() - interval '23 hours 59 minutes'
  AND a.occurred_at >= CAST(:as_of AS timestamptz) - interval '23 hours 59 minutes'
  AND a.occurred_at <= CAST(:as_of AS timestamptz)
  AND o.event_id IS NULL
ORDER BY a.occurred_at DESC
LIMIT :max_rows;
