-- question: how many notifications were given up (dead-lettered) in each minute of the window?
-- index: scan of notification_dlq, which is small where things work
-- cost: scan
-- answers: window
SELECT date_trunc('minute', created_at) AS minute, count(*) AS n
FROM notification.notification_dlq
WHERE created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
