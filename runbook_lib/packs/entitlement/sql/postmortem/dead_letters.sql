-- question: how many dead letters of each kind came in each bucket of an incident?
-- index: scan of the two dead-letter tables, which have no index on the time
-- cost: scan
-- answers: window
SELECT CAST(floor(extract(epoch FROM created_at - CAST(:since AS timestamptz)) / CAST(:bucket_s AS integer)) AS integer)
        AS bucket,
    count(*) FILTER (WHERE kind = 'delivery') AS delivery, count(*) FILTER (WHERE kind = 'subscriber') AS subscriber,
    min(created_at) AS first_letter
FROM (
    SELECT 'delivery' AS kind, created_at FROM notification.notification_dlq
    UNION ALL
    SELECT 'subscriber', created_at FROM notification.notification_nats_dlq
) letters
WHERE created_at >= CAST(:since AS timestamptz) AND created_at < CAST(:until AS timestamptz)
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
