-- question: how many outbox events are not published and not given up? The anchor of backlog(t)
-- index: outbox_pick_idx
-- cost: index
-- answers: window
-- column: now time
-- column: n rows
-- column: oldest time
SELECT now() AS now, count(*) AS n, min(created_at) AS oldest
FROM entitlement.outbox_events
WHERE status IN ('PENDING', 'IN_FLIGHT');
