-- question: how long did published events take, since each of some moments and minute by minute (the last 50,000)?
-- index: outbox_published_at_idx
-- cost: index
-- answers: window
WITH published AS MATERIALIZED (
    SELECT
        published_at,
        published_at < created_at - interval '1 second' AS negative,
        greatest(extract(epoch FROM published_at - created_at), 0) AS delay_s  -- below 0 counts as 0
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at >= CAST(:since AS timestamptz) AND published_at <= CAST(:as_of AS timestamptz)
    ORDER BY published_at DESC
    LIMIT 50000
)
SELECT
    nth,
    NULL AS minute,
    count(published_at) AS n,
    percentile_cont(0.50) WITHIN GROUP (ORDER BY delay_s) AS p50,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s) AS p95,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY delay_s) AS p99,
    count(*) FILTER (WHERE negative) AS negative,
    extract(epoch FROM max(published_at) - min(published_at)) AS span_s
FROM unnest(CAST(:begins AS timestamptz[])) WITH ORDINALITY AS moment (begin_at, nth)
LEFT JOIN published ON published_at >= begin_at
GROUP BY nth
UNION ALL
SELECT
    NULL,
    date_trunc('minute', published_at),
    count(*),
    percentile_cont(0.50) WITHIN GROUP (ORDER BY delay_s),
    percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s),
    percentile_cont(0.99) WITHIN GROUP (ORDER BY delay_s),
    count(*) FILTER (WHERE negative),
    NULL
FROM published
GROUP BY 2
ORDER BY nth, minute DESC
LIMIT :max_rows;
