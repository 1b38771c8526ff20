-- question: when was an event last processed, and how many in the last minute?
-- index: processed_events_processed_at_idx
-- cost: index
-- answers: present
-- A time that is further ahead than clocks differ is not read: 4.3.5 counts such rows.
SELECT
    now() AS now,
    (SELECT max(processed_at) FROM notification.processed_events
     WHERE processed_at <= now() + interval '5 minutes') AS last_processed,
    (SELECT count(*) FROM notification.processed_events
     WHERE processed_at > now() - interval '1 minute' AND processed_at <= now() + interval '5 minutes') AS processed_1m;
