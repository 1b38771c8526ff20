-- question: how old are the events that are not published yet (of 20,000)?
-- index: outbox_pick_idx
-- cost: index
-- answers: present
SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM now() - created_at)) AS p95
FROM (
    SELECT created_at FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT')
    LIMIT 20000
) unpublished;
