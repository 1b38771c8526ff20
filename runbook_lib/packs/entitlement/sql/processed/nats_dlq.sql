-- question: how many messages did the subscriber give up on in the window?
-- index: scan of notification_nats_dlq, which is small where things work
-- cost: scan
-- answers: window
-- reuse: 15 s
SELECT count(*) AS n
FROM notification.notification_nats_dlq
WHERE created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz);
