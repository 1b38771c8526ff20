-- question: of the events created in a span of seconds ago, how many are published, and after how long?
-- index: outbox_published_at_idx, outbox_pick_idx
-- cost: index
-- answers: window
-- reuse: 15 s
SELECT count(*) AS n, count(delay_s) AS done, percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s) AS p95
FROM (
    SELECT greatest(extract(epoch FROM published_at - created_at), 0) AS delay_s
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at >= CAST(:since AS timestamptz) - interval '10 seconds'
      AND created_at >= CAST(:since AS timestamptz) AND created_at < CAST(:until AS timestamptz)
    UNION ALL
    SELECT NULL FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) AND created_at < CAST(:until AS timestamptz)
) cohort;
