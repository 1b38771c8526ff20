-- question: how many rows arrived, succeeded and failed in each minute of the window?
-- index: scan
-- cost: scan
-- answers: window
SELECT
    CAST(floor(extract(epoch FROM at - :since) / 60) AS integer) AS minute,
    count(*) FILTER (WHERE what = 'arrived') AS arrived,
    count(*) FILTER (WHERE what = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE what = 'failed') AS failed
FROM (
    SELECT {created} AS at, 'arrived' AS what
    FROM {table}
    WHERE {created} >= :since AND {created} < :as_of
    UNION ALL
    SELECT {finished}, 'succeeded'
    FROM {table}
    WHERE {state} IN ({done}) AND {finished} >= :since AND {finished} < :as_of
    UNION ALL
    SELECT coalesce({finished}, {started}), 'failed'
    FROM {table}
    WHERE {state} IN ({failed})
        AND coalesce({finished}, {started}) >= :since AND coalesce({finished}, {started}) < :as_of
) events
GROUP BY minute
ORDER BY minute
LIMIT 1500;
