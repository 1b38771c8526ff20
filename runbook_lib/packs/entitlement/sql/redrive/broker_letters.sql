-- The newest stream sequences that the subscriber recorded as given up: a stream that was made anew counts from 1 again.
SELECT stream_seq, created_at FROM notification.notification_nats_dlq ORDER BY created_at DESC LIMIT %(most)s
