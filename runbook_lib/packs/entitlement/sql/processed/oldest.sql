-- question: for how long has the oldest event been registered?
-- index: processed_events_processed_at_idx
-- cost: index
-- answers: present
-- column: age_d d
SELECT extract(epoch FROM now() - min(processed_at)) / 86400 AS age_d FROM notification.processed_events;
