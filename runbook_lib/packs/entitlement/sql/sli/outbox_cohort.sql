-- question: of the events created in each of some spans of seconds ago, how many are published, and after how long?
-- index: outbox_published_at_idx, outbox_pick_idx
-- cost: index
-- answers: window
WITH created AS MATERIALIZED (
    SELECT created_at, greatest(extract(epoch FROM published_at - created_at), 0) AS delay_s
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at >= CAST(:since AS timestamptz) - interval '10 seconds'
      AND created_at >= CAST(:since AS timestamptz) AND created_at < CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT created_at, NULL FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) AND created_at < CAST(:as_of AS timestamptz)
)
SELECT nth, count(created_at) AS n, count(delay_s) AS done, percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s) AS p95
FROM unnest(CAST(:begins AS timestamptz[]), CAST(:ends AS timestamptz[])) WITH ORDINALITY AS span (begin_at, end_at, nth)
LEFT JOIN created ON created_at >= begin_at AND created_at < end_at
GROUP BY nth;
