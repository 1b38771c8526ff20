-- question: how many outbox events were written since a moment (of at most 5,000 of each kind)?
-- index: outbox_pick_idx, outbox_inflight_lease_idx, outbox_published_at_idx
-- cost: index
-- answers: present
SELECT count(*) AS n
FROM (
    (SELECT created_at FROM entitlement.outbox_events
     WHERE status = 'PENDING' AND created_at > CAST(:moment AS timestamptz)
       AND created_at <= now() + interval '5 minutes'
     LIMIT 5000)
    UNION ALL
    (SELECT created_at FROM entitlement.outbox_events
     WHERE status = 'IN_FLIGHT' AND created_at > CAST(:moment AS timestamptz)
       AND created_at <= now() + interval '5 minutes'
     LIMIT 5000)
    UNION ALL
    -- Published after it was written, bar the batch that had begun before.
    (SELECT created_at FROM entitlement.outbox_events
     WHERE status = 'PUBLISHED' AND published_at > CAST(:moment AS timestamptz) - interval '1 minute'
       AND created_at > CAST(:moment AS timestamptz)
       AND created_at <= now() + interval '5 minutes'
     LIMIT 5000)
) created;
