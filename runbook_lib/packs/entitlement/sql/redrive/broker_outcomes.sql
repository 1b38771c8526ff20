-- What became of these rows of the ledger, or of all that have not come to an end.
SELECT r.id, r.event_id, r.stream_seq, r.published_seq, r.archived ->> 'user_id' AS user_id,
    CASE
        WHEN r.state NOT IN ('publishing', 'waiting') THEN r.state
        WHEN p.event_id IS NOT NULL THEN 'succeeded'
        WHEN r.state = 'waiting' AND d.stream_seq IS NOT NULL THEN 'failed'
        ELSE r.state
    END AS outcome
FROM runbook.redriven r
LEFT JOIN notification.processed_events p ON p.event_id = r.event_id
LEFT JOIN notification.notification_nats_dlq d ON d.stream_seq = r.published_seq
WHERE r.store = 'broker' AND r.decision = 'redrive'
  AND (r.id = ANY (CAST(%(ids)s AS bigint[]))
       OR CAST(%(ids)s AS bigint[]) IS NULL AND r.state IN ('publishing', 'waiting'))
ORDER BY r.id
