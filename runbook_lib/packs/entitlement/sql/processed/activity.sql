-- question: when was an event last processed, and how many in the last minute?
-- index: processed_events_processed_at_idx
-- cost: index
-- answers: present
SELECT
    now() AS now,
    (SELECT max(processed_at) FROM notification.processed_events) AS last_processed,
    (SELECT count(*) FROM notification.processed_events
     WHERE processed_at > now() - interval '1 minute') AS processed_1m;
