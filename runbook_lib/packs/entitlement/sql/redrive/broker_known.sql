-- What is known of these sequences and the events in them.
SELECT l.stream_seq,
    -- A notification or a dead letter shows that it was processed even if its registration was deleted. The ledger still
    -- shows it when all three were: after 30 days.
    EXISTS (SELECT FROM notification.processed_events p WHERE p.event_id = l.event_id)
        OR EXISTS (SELECT FROM notification.notifications n WHERE n.user_id = l.user_id AND n.event_id = l.event_id)
        OR EXISTS (SELECT FROM notification.notification_dlq d WHERE d.event_id = l.event_id)
        OR EXISTS (
            SELECT FROM runbook.redriven r
            WHERE r.store IN ('broker', 'delivery', 'outbox') AND r.event_id = l.event_id
              AND r.decision = 'redrive' AND r.state = 'succeeded'
        ) AS processed,
    EXISTS (
        SELECT FROM runbook.redriven r
        WHERE r.store = 'broker' AND r.decision = 'discard'
          AND (r.event_id = l.event_id OR r.event_id IS NULL AND l.event_id IS NULL AND r.stream_seq = l.stream_seq)
    ) AS discarded,
    (
        SELECT count(*) FROM runbook.redriven r
        WHERE r.store = 'broker' AND r.event_id = l.event_id AND r.decision = 'redrive'
    ) AS times
FROM unnest(CAST(%(seqs)s AS bigint[]), CAST(%(events)s AS uuid[]), CAST(%(users)s AS text[]))
    AS l (stream_seq, event_id, user_id)
