-- question: which events of the window were published, long enough ago, and never processed (of the last 20,000)?
-- index: outbox_published_at_idx, processed_events_processed_at_idx, processed_events_pkey
-- cost: index
-- answers: window
WITH published AS MATERIALIZED (
    SELECT event_id, event_type, created_at, published_at
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at >= CAST(:since AS timestamptz)
      AND published_at < CAST(:as_of AS timestamptz) - make_interval(secs => CAST(:settled_s AS float8))
    ORDER BY published_at DESC
    LIMIT 20000
), processed AS MATERIALIZED (
    -- Nearly all of them lie side by side here: processed after it was published, bar clocks that are apart.
    SELECT event_id
    FROM notification.processed_events
    WHERE processed_at >= (SELECT min(published_at) FROM published) - interval '1 minute'
    ORDER BY processed_at
    LIMIT 60000
), missing AS MATERIALIZED (
    SELECT o.event_id, o.event_type, o.created_at, o.published_at
    FROM published o
    LEFT JOIN processed p ON p.event_id = o.event_id
    WHERE p.event_id IS NULL
)
SELECT event_id, event_type, created_at, published_at
FROM missing
-- One probe of the key for each that is left; a join could choose to read the whole of processed_events.
WHERE (SELECT true FROM notification.processed_events p WHERE p.event_id = missing.event_id LIMIT 1) IS NULL
ORDER BY published_at DESC
LIMIT :max_rows;
