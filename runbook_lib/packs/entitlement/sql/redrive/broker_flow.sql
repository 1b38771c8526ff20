-- Does the subscriber work? When it last recorded a message that was given up, and the time now.
SELECT max(created_at) AS failed_at, now() AS now, 0 AS retrying FROM notification.notification_nats_dlq
