-- question: which stream sequences did the subscriber record as given up in the window?
-- index: scan of notification_nats_dlq, which is small where things work
-- cost: scan
-- answers: window
SELECT stream_seq, created_at
FROM notification.notification_nats_dlq
WHERE created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
ORDER BY created_at DESC
LIMIT :max_rows;
