-- question: which events of the window (of the last 20,000) are registered more than once?
-- index: processed_events_processed_at_idx
-- cost: index
-- answers: window
SELECT event_id, count(*) AS n, min(processed_at) AS first, max(processed_at) AS last
FROM (
    SELECT event_id, processed_at FROM notification.processed_events
    WHERE processed_at >= CAST(:since AS timestamptz) AND processed_at <= CAST(:as_of AS timestamptz)
    ORDER BY processed_at DESC
    LIMIT 20000
) recent
GROUP BY event_id
HAVING count(*) > 1
ORDER BY last DESC
LIMIT :max_rows;
