-- question: the same for the window, within the last 2,000 pages of the audit
-- index: a range of the heap (rows are only ever appended), outbox_published_at_idx, outbox_pick_idx, notifications_user_idx
-- cost: index
-- answers: window
WITH tail AS MATERIALIZED (
    SELECT audit_id, occurred_at, user_id, stock_keeping_unit, action, user_id || ':' || stock_keeping_unit AS item
    FROM entitlement.entitlement_audit
    WHERE ctid >= CAST((
        SELECT format('(%s,0)', greatest(
            pg_relation_size('entitlement.entitlement_audit') / CAST(current_setting('block_size') AS bigint) - 2000,
            0))
        ) AS tid)
), changes AS (
    SELECT * FROM tail
    -- Published events are removed after 24 h.
    WHERE occurred_at >= greatest(CAST(:since AS timestamptz), now() - interval '23 hours 59 minutes')
      AND occurred_at <= CAST(:as_of AS timestamptz)
), events AS MATERIALIZED (
    SELECT aggregate_key, created_at FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at >= CAST(:since AS timestamptz) - interval '1 minute'
    UNION ALL
    SELECT aggregate_key, created_at FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED') AND created_at >= CAST(:since AS timestamptz)
), lone AS (
    SELECT c.*, row_number() OVER (PARTITION BY c.item ORDER BY c.occurred_at) AS nth
    FROM changes c
    LEFT JOIN events e ON e.aggregate_key = c.item AND e.created_at = c.occurred_at
    WHERE e.created_at IS NULL
), dated_otherwise AS (
    -- A change and an event of one item that differ in the time alone are a pair: the clock of one is wrong.
    SELECT e.aggregate_key, count(*) AS events
    FROM events e
    LEFT JOIN tail t ON t.item = e.aggregate_key AND t.occurred_at = e.created_at
    WHERE t.audit_id IS NULL
    GROUP BY e.aggregate_key
)
SELECT c.audit_id, c.occurred_at, c.user_id, c.stock_keeping_unit, c.action,
    -- The event's notification shows that there was one.
    (SELECT n.status FROM notification.notifications n
     WHERE n.user_id = c.user_id AND n.created_at >= c.occurred_at - interval '1 minute'
       AND n.occurred_at = c.occurred_at AND n.payload_json ->> 'stock_keeping_unit' = c.stock_keeping_unit
     LIMIT 1) AS notification
FROM lone c
LEFT JOIN dated_otherwise d ON d.aggregate_key = c.item
WHERE c.nth > coalesce(d.events, 0)
ORDER BY c.occurred_at DESC
LIMIT :max_rows;
