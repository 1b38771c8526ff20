-- question: which changes of rights of the last 24 h have no outbox event of the same user, item and instant?
-- index: scan of entitlement_audit, which has no index and is never cleaned
-- cost: scan
-- answers: window
-- column: audit_id id
-- column: occurred_at time
-- column: user_id id
-- column: stock_keeping_unit text
-- column: action text
SELECT a.audit_id, a.occurred_at, a.user_id, a.stock_keeping_unit, a.action
FROM entitlement.entitlement_audit a
LEFT JOIN entitlement.outbox_events o
    ON o.aggregate_key = a.user_id || ':' || a.stock_keeping_unit AND o.created_at = a.occurred_at
-- Published events are removed after 24 h: the oldest minute is left out.
WHERE a.occurred_at >= CAST(:as_of AS timestamptz) - interval '23 hours 59 minutes'
  AND a.occurred_at <= CAST(:as_of AS timestamptz)
  AND o.event_id IS NULL
ORDER BY a.occurred_at DESC
LIMIT :max_rows;
