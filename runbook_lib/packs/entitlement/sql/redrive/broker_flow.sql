-- Does the subscriber work? Seconds since it last gave up a message.
SELECT extract(epoch FROM now() - max(created_at)) AS failed_s, 0 AS retrying FROM notification.notification_nats_dlq
