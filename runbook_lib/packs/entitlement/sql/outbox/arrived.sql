-- question: of the events whose publish failed, how many were processed all the same (of the 200 tried next)?
-- index: outbox_pick_idx, processed_events_pkey
-- cost: index
-- answers: present
SELECT count(*) AS n, count(p.event_id) AS arrived
FROM (
    SELECT event_id FROM entitlement.outbox_events
    WHERE status = 'PENDING' AND next_retry_at IS NOT NULL AND attempt_count > 0
    ORDER BY next_retry_at
    LIMIT 200
) failed
LEFT JOIN notification.processed_events p USING (event_id);
