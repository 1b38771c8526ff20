-- question: how many rows arrived, succeeded and failed in each bucket of the window?
-- index: scan
-- cost: scan
-- answers: window
SELECT
    CAST(floor(extract(epoch FROM at - :since) / :bucket_s) AS integer) AS bucket,
    count(*) FILTER (WHERE what = 'arrived') AS arrived,
    count(*) FILTER (WHERE what = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE what = 'failed') AS failed
FROM (
    SELECT {created} AS at, 'arrived' AS what
    FROM {table}
    WHERE {created} >= :since AND {created} < :until
    UNION ALL
    SELECT {finished}, 'succeeded'
    FROM {table}
    WHERE {state} IN ({done}) AND {finished} >= :since AND {finished} < :until
    UNION ALL
    SELECT coalesce({finished}, {started}), 'failed'
    FROM {table}
    WHERE {state} IN ({failed})
        AND coalesce({finished}, {started}) >= :since AND coalesce({finished}, {started}) < :until
) events
GROUP BY bucket
ORDER BY bucket
LIMIT :max_rows;
