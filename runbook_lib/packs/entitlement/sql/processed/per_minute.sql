-- question: how many events were processed in each minute of the window?
-- index: processed_events_processed_at_idx
-- cost: scan
-- answers: window
SELECT date_trunc('minute', processed_at) AS minute, count(*) AS n
FROM notification.processed_events
WHERE processed_at >= CAST(:since AS timestamptz) AND processed_at <= CAST(:as_of AS timestamptz)
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
