-- question: when was the newest outbox event written (of those published: that never needed a second try)?
-- index: outbox_pick_idx
-- cost: index
-- answers: present
SELECT
    now() AS now,
    greatest(
        max(newest.created_at),
        (SELECT max(created_at) FROM entitlement.outbox_events
         WHERE status IN ('PENDING', 'IN_FLIGHT') AND next_retry_at IS NOT NULL)
    ) AS last_event
FROM (VALUES ('PENDING'), ('IN_FLIGHT'), ('PUBLISHED'), ('FAILED')) AS s (status)
CROSS JOIN LATERAL (
    SELECT e.created_at FROM entitlement.outbox_events e
    WHERE e.status = s.status AND e.next_retry_at IS NULL
    ORDER BY e.next_retry_at DESC, e.created_at DESC  -- as the index is ordered; alone, created_at would be sorted
    LIMIT 1
) newest;
