-- question: which notifications of the window (of the last 20,000) are of events that the outbox never had?
-- index: notifications_retention_*_idx, outbox_published_at_idx, outbox_events_pkey, entitlements_pkey, processed_events_pkey
-- cost: index
-- answers: window
WITH recent AS MATERIALIZED (
    SELECT * FROM (
        SELECT event_id, notification_id, user_id, status, occurred_at, created_at, payload_json
        FROM notification.notifications
        WHERE status IN ('SENT', 'FAILED') AND type <> 'MatchFound'
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
        UNION ALL
        SELECT event_id, notification_id, user_id, status, occurred_at, created_at, payload_json
        FROM notification.notifications
        WHERE status IN ('PENDING', 'PROCESSING') AND type <> 'MatchFound'
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    ) created
    -- Published events are removed after 24 h, so the outbox still has every later one.
    WHERE occurred_at >= now() - interval '23 hours 59 minutes'
    ORDER BY created_at DESC
    LIMIT 20000
), published AS MATERIALIZED (
    SELECT event_id FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at >= (SELECT min(occurred_at) FROM recent) - interval '1 minute'
    ORDER BY published_at DESC
    LIMIT 60000
), unmatched AS MATERIALIZED (
    SELECT r.*
    FROM recent r
    LEFT JOIN published p ON p.event_id = r.event_id
    WHERE p.event_id IS NULL
)
SELECT u.event_id, u.notification_id, u.status, u.occurred_at, u.created_at,
    (SELECT true FROM notification.processed_events p WHERE p.event_id = u.event_id LIMIT 1) IS NOT NULL AS registered
FROM unmatched u
WHERE (SELECT true FROM entitlement.outbox_events o WHERE o.event_id = u.event_id LIMIT 1) IS NULL
  -- A change of the right at that time, or since, shows that the event was of this system, and its row deleted.
  AND (SELECT true FROM entitlement.entitlements e
       WHERE e.user_id = u.user_id AND e.stock_keeping_unit = u.payload_json ->> 'stock_keeping_unit'
         AND e.updated_at >= u.occurred_at - interval '1 minute'
       LIMIT 1) IS NULL
ORDER BY u.created_at DESC
LIMIT :max_rows;
