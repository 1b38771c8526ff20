-- question: how many rows arrived, succeeded and failed in each bucket of the window?
-- index: scan
-- cost: scan
-- answers: window
SELECT
    CAST(floor(extract(epoch FROM at - :since) / :bucket_s) AS integer) AS bucket,
    count(*) FILTER (WHERE what = 'arrived') AS arrived,
    count(*) FILTER (WHERE what = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE what = 'failed') AS failed
FROM ({happened}) happened
WHERE at >= :since AND at < :until
GROUP BY bucket
ORDER BY bucket
LIMIT :max_rows;
