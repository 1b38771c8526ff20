-- question: how many jobs were deferred, begun, ended and put back in each ten seconds lately?
-- index: procrastinate_events_pkey
-- cost: index
-- answers: present
SELECT
    CAST(floor(extract(epoch FROM now() - at) / 10) AS int) AS tens_ago,
    count(*) FILTER (WHERE type = 'deferred') AS deferred,
    count(*) FILTER (WHERE type = 'started') AS begun,
    count(*) FILTER (WHERE type = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE type = 'deferred_for_retry') AS retried,
    count(*) FILTER (WHERE type = 'failed') AS failed
FROM (SELECT type, at FROM procrastinate_events ORDER BY id DESC LIMIT :most) e
WHERE type <> 'scheduled' AND at BETWEEN now() - :within_s * interval '1 s' AND now()
GROUP BY tens_ago
ORDER BY tens_ago;
