-- question: when was the newest outbox event written, and how old are those that are not published yet (of 20,000)?
-- index: outbox_pick_idx
-- cost: index
-- answers: present
SELECT
    now() AS now,
    -- Of those that are published: the newest that never needed a second try.
    greatest(
        max(newest.created_at),
        (SELECT max(created_at) FROM entitlement.outbox_events
         WHERE status IN ('PENDING', 'IN_FLIGHT') AND next_retry_at IS NOT NULL)
    ) AS last_event,
    (SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM now() - created_at))
     FROM (
         SELECT created_at FROM entitlement.outbox_events
         WHERE status IN ('PENDING', 'IN_FLIGHT')
         LIMIT 20000
     ) unpublished) AS p95
FROM (VALUES ('PENDING'), ('IN_FLIGHT'), ('PUBLISHED'), ('FAILED')) AS s (status)
CROSS JOIN LATERAL (
    SELECT e.created_at FROM entitlement.outbox_events e
    WHERE e.status = s.status AND e.next_retry_at IS NULL
    ORDER BY e.next_retry_at DESC, e.created_at DESC  -- as the index is ordered; alone, created_at would be sorted
    LIMIT 1
) newest;
