-- question: how many outbox events went to the stream from the batch of one event on, for certain or perhaps?
-- index: outbox_events_pkey, outbox_published_at_idx, outbox_inflight_lease_idx, outbox_pick_idx
-- cost: index
-- answers: present
-- column: since time
-- column: published rows
-- column: perhaps rows
WITH batch AS MATERIALIZED (
    SELECT published_at FROM entitlement.outbox_events WHERE event_id = CAST(:event AS uuid) AND status = 'PUBLISHED'
)
SELECT
    (SELECT published_at FROM batch) AS since,
    (SELECT count(*) FROM (
        SELECT FROM entitlement.outbox_events
        WHERE status = 'PUBLISHED' AND published_at >= (SELECT published_at FROM batch)
        LIMIT 20000
    ) published) AS published,
    -- Stored by the broker and not marked yet, or counted as failed because the answer came too late.
    (SELECT count(*) FROM (
        SELECT FROM entitlement.outbox_events WHERE status = 'IN_FLIGHT' LIMIT 20000
    ) held)
    + (SELECT count(*) FILTER (WHERE attempt_count > 0) FROM (
        SELECT attempt_count FROM entitlement.outbox_events WHERE status IN ('PENDING', 'FAILED') LIMIT 20000
    ) tried) AS perhaps;
