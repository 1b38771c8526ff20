-- question: which of these events have been processed?
-- index: processed_events_pkey
-- cost: index
-- answers: window
SELECT event_id
FROM notification.processed_events
WHERE event_id = ANY (CAST(:event_ids AS uuid[])) AND processed_at <= CAST(:as_of AS timestamptz)
LIMIT :max_rows;
