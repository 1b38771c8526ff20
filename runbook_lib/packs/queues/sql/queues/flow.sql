-- question: how many rows arrived, succeeded and failed in each ten seconds lately?
-- index: scan
-- cost: scan
-- answers: present
SELECT
    CAST(floor(extract(epoch FROM now() - at) / 10) AS integer) AS tens_ago,
    count(*) FILTER (WHERE what = 'arrived') AS arrived,
    count(*) FILTER (WHERE what = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE what = 'failed') AS failed
FROM ({happened}) happened
WHERE at BETWEEN now() - :within_s * interval '1 s' AND now()
GROUP BY tens_ago
ORDER BY tens_ago
LIMIT 500;
