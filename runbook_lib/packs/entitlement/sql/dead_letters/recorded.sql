-- question: which of these stream sequences has the subscriber recorded as given up, and when?
-- index: notification_nats_dlq_pkey
-- cost: index
-- answers: window
SELECT stream_seq, created_at
FROM notification.notification_nats_dlq
WHERE stream_seq = ANY (CAST(:seqs AS bigint[])) AND created_at <= CAST(:as_of AS timestamptz)
LIMIT :max_rows;
