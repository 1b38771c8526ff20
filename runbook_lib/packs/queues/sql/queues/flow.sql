-- question: how many rows arrived, succeeded and failed in each ten seconds lately?
-- index: scan
-- cost: scan
-- answers: present
-- reuse: 15 s
SELECT
    CAST(floor(extract(epoch FROM now() - at) / 10) AS integer) AS tens_ago,
    count(*) FILTER (WHERE what = 'arrived') AS arrived,
    count(*) FILTER (WHERE what = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE what = 'failed') AS failed
FROM (
    SELECT {created} AS at, 'arrived' AS what
    FROM {table}
    WHERE {created} BETWEEN now() - :within_s * interval '1 s' AND now()
    UNION ALL
    SELECT {finished}, 'succeeded'
    FROM {table}
    WHERE {state} IN ({done}) AND {finished} BETWEEN now() - :within_s * interval '1 s' AND now()
    UNION ALL
    SELECT coalesce({finished}, {started}), 'failed'
    FROM {table}
    WHERE {state} IN ({failed})
        AND coalesce({finished}, {started}) BETWEEN now() - :within_s * interval '1 s' AND now()
) events
GROUP BY tens_ago
ORDER BY tens_ago
LIMIT 500;
