-- What became of these rows of the ledger, or of all that have not come to an end.
SELECT r.id, r.event_id, r.stream_seq, r.published_seq, r.at, r.archived ->> 'user_id' AS user_id,
    -- An older record of the sequence is of a stream that was lost.
    d.stream_seq IS NOT NULL AS recorded,
    CASE
        WHEN r.state NOT IN ('publishing', 'waiting') THEN r.state
        -- Also if its registration was deleted.
        WHEN p.event_id IS NOT NULL
            OR EXISTS (SELECT FROM notification.notification_dlq l WHERE l.event_id = r.event_id)
            OR EXISTS (
                SELECT FROM notification.notifications n
                WHERE n.user_id = r.archived ->> 'user_id' AND n.event_id = r.event_id
            ) THEN 'succeeded'
        -- Its registration may have been removed meanwhile: nobody publishes it again without its name.
        WHEN r.at < now() - %(by_name_s)s * interval '1 second' THEN 'missing'
        ELSE r.state
    END AS outcome
FROM runbook.redriven r
LEFT JOIN notification.processed_events p ON p.event_id = r.event_id
LEFT JOIN notification.notification_nats_dlq d
    ON d.stream_seq = r.published_seq AND d.created_at >= r.at - %(apart_s)s * interval '1 second'
WHERE r.store = 'broker' AND r.decision = 'redrive'
  AND (r.id = ANY (CAST(%(ids)s AS bigint[]))
       OR CAST(%(ids)s AS bigint[]) IS NULL AND r.state IN ('publishing', 'waiting'))
ORDER BY r.id
