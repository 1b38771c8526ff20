-- question: how long did events take to be published, minute by minute of the window?
-- index: outbox_published_at_idx
-- cost: scan
-- answers: window
SELECT
    date_trunc('minute', published_at) AS minute,
    count(*) AS n,
    percentile_cont(0.50) WITHIN GROUP (ORDER BY delay_s) AS p50,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY delay_s) AS p95
FROM (
    SELECT published_at, greatest(extract(epoch FROM published_at - created_at), 0) AS delay_s
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at >= CAST(:since AS timestamptz) AND published_at <= CAST(:as_of AS timestamptz)
    ORDER BY published_at DESC
    LIMIT 50000
) published
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
