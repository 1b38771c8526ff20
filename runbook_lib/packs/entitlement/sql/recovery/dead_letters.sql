-- question: how many dead letters of each kind came in each 10 s of the window?
-- index: scan of the two dead-letter tables, which have no index on the time
-- cost: scan
-- answers: window
SELECT kind, CAST(floor(extract(epoch FROM CAST(:as_of AS timestamptz) - created_at) / 10) AS integer) AS tens_ago,
    count(*) AS n, max(created_at) AS last
FROM (
    SELECT 'delivery' AS kind, created_at FROM notification.notification_dlq
    UNION ALL
    SELECT 'subscriber', created_at FROM notification.notification_nats_dlq
) letters
WHERE created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
GROUP BY 1, 2
ORDER BY 2
LIMIT :max_rows;
