-- question: which of these events are registered as processed now?
-- index: processed_events_pkey
-- cost: index
-- answers: present
SELECT event_id
FROM notification.processed_events
WHERE event_id = ANY (CAST(:ids AS uuid[]))
LIMIT :max_rows;
