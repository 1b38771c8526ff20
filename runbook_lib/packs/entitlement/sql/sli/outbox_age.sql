-- question: how old are the events that are not published yet (of 20,000)?
-- index: outbox_pick_idx
-- cost: index
-- answers: present
-- column: n rows
-- column: p95 s
-- column: oldest_s s
SELECT count(*) AS n,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM now() - created_at)) AS p95,
    extract(epoch FROM now() - min(created_at)) AS oldest_s
FROM (
    SELECT created_at FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT')
    LIMIT 20000
) unpublished;
