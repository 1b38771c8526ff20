-- question: how many events were published in each 10 s, and how many of them late or after a try that failed?
-- index: outbox_published_at_idx
-- cost: index
-- answers: window
-- reuse: 15 s
SELECT 'published' AS what,
    CAST(floor(extract(epoch FROM CAST(:as_of AS timestamptz) - published_at) / 10) AS integer) AS tens_ago,
    count(*) AS n,
    count(*) FILTER (WHERE tried OR slow) AS late,
    count(*) FILTER (WHERE tried) AS tried,
    max(published_at) FILTER (WHERE tried OR slow) AS last_late
FROM (
    SELECT published_at, attempt_count > 0 AS tried,
        published_at - created_at >= interval '1 second' * CAST(:limit_s AS double precision) AS slow
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at >= CAST(:since AS timestamptz) AND published_at <= CAST(:as_of AS timestamptz)
) published
GROUP BY 2
ORDER BY 2
LIMIT :max_rows;
