-- The newest stream sequences that the subscriber recorded as given up.
SELECT stream_seq, created_at FROM notification.notification_nats_dlq ORDER BY stream_seq DESC LIMIT %(most)s
