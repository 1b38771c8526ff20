-- question: how many messages did the subscriber give up on, since each of some moments?
-- index: scan of notification_nats_dlq, which is small where things work
-- cost: scan
-- answers: window
SELECT nth, count(created_at) AS n
FROM unnest(CAST(:begins AS timestamptz[])) WITH ORDINALITY AS moment (begin_at, nth)
LEFT JOIN notification.notification_nats_dlq ON created_at >= begin_at AND created_at <= CAST(:as_of AS timestamptz)
GROUP BY nth;
