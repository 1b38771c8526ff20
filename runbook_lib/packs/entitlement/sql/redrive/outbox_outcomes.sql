-- What became of these rows of the ledger, or of all that have not come to an end.
SELECT r.id, r.event_id, o.payload ->> 'user_id' AS user_id,
    CASE
        WHEN r.state <> 'waiting' THEN r.state
        -- Published events are deleted after a day.
        WHEN o.event_id IS NULL THEN CASE WHEN p.event_id IS NULL THEN 'missing' ELSE 'succeeded' END
        WHEN o.status = 'PUBLISHED' THEN CASE WHEN p.event_id IS NULL THEN 'published' ELSE 'succeeded' END
        WHEN o.status = 'FAILED' THEN 'failed'
        ELSE 'waiting'
    END AS outcome
FROM runbook.redriven r
LEFT JOIN entitlement.outbox_events o ON o.event_id = r.event_id
LEFT JOIN notification.processed_events p ON p.event_id = r.event_id
WHERE r.store = 'outbox' AND r.decision = 'redrive'
  AND (r.id = ANY (CAST(%(ids)s AS bigint[]))
       OR CAST(%(ids)s AS bigint[]) IS NULL AND r.state IN ('publishing', 'waiting'))
ORDER BY r.id
