-- question: when was each of these events registered as processed?
-- index: processed_events_pkey
-- cost: index
-- answers: window
SELECT event_id, processed_at
FROM notification.processed_events
WHERE event_id = ANY (CAST(:ids AS uuid[]))
ORDER BY processed_at
LIMIT :max_rows;
