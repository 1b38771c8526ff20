-- question: how many events came into the outbox and were published in each minute of the window?
-- index: outbox_published_at_idx, outbox_pick_idx
-- cost: scan
-- answers: window
SELECT date_trunc('minute', at) AS minute, sum(arrived) AS arrived, sum(gone) AS n
FROM (
    -- Published after it was written, bar the batch that had begun before.
    SELECT created_at, published_at FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at > CAST(:since AS timestamptz) - interval '1 minute'
    UNION ALL
    SELECT created_at, NULL FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED') AND created_at >= CAST(:since AS timestamptz)
) events
CROSS JOIN LATERAL (VALUES (created_at, 1, 0), (published_at, 0, 1)) AS flow (at, arrived, gone)
WHERE at >= CAST(:since AS timestamptz) AND at <= CAST(:as_of AS timestamptz)
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
