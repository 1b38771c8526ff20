-- question: how many rows arrived, succeeded and failed in each minute of the window?
-- index: scan
-- cost: scan
-- answers: window
SELECT
    CAST(floor(extract(epoch FROM at - :since) / 60) AS integer) AS minute,
    count(*) FILTER (WHERE what = 'arrived') AS arrived,
    count(*) FILTER (WHERE what = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE what = 'failed') AS failed
FROM ({happened}) happened
WHERE at >= :since AND at < :as_of
GROUP BY minute
ORDER BY minute
LIMIT 1500;
