-- question: how long did published events take (the last 50,000 of the window; below 0 counts as 0)?
-- index: outbox_published_at_idx
-- cost: index
-- answers: window
-- reuse: 15 s
SELECT
    count(*) AS n,
    percentile_cont(0.50) WITHIN GROUP (ORDER BY delay_s) AS p50,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s) AS p95,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY delay_s) AS p99,
    count(*) FILTER (WHERE negative) AS negative
FROM (
    SELECT
        published_at,
        published_at < created_at - interval '1 second' AS negative,
        greatest(extract(epoch FROM published_at - created_at), 0) AS delay_s
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at >= CAST(:since AS timestamptz) AND published_at <= CAST(:as_of AS timestamptz)
    ORDER BY published_at DESC
    LIMIT 50000
) published;
