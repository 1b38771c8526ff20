-- question: bucket by bucket of an incident: which events never became a notification (of 200,000)?
-- index: outbox_published_at_idx, outbox_pick_idx, processed_events_processed_at_idx, notifications_retention_*_idx, scan of notification_dlq
-- cost: scan
-- answers: window
WITH published AS MATERIALIZED (
    SELECT event_id, created_at FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at >= CAST(:since AS timestamptz) AND published_at < CAST(:until AS timestamptz)
    ORDER BY published_at
    LIMIT 200000
), processed AS MATERIALIZED (
    -- Processed after it was published, bar clocks that are apart.
    SELECT event_id FROM notification.processed_events
    WHERE processed_at >= CAST(:since AS timestamptz) - interval '10 minutes'
      AND processed_at < CAST(:until AS timestamptz) + interval '1 hour'
    -- Notifications and dead letters whose registration was deleted.
    UNION
    SELECT event_id FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) - interval '10 minutes'
      AND created_at < CAST(:until AS timestamptz) + interval '1 hour'
    UNION
    SELECT event_id FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
      AND created_at >= CAST(:since AS timestamptz) - interval '10 minutes'
      AND created_at < CAST(:until AS timestamptz) + interval '1 hour'
    UNION
    SELECT event_id FROM notification.notification_dlq
    WHERE created_at >= CAST(:since AS timestamptz) - interval '10 minutes'
), never AS (
    SELECT o.created_at, true AS published FROM published o
    LEFT JOIN processed p ON p.event_id = o.event_id
    WHERE p.event_id IS NULL
    UNION ALL
    SELECT created_at, false AS published FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
)
SELECT CAST(floor(extract(epoch FROM created_at - CAST(:since AS timestamptz)) / CAST(:bucket_s AS integer)) AS integer)
        AS bucket,
    count(*) AS n, count(*) FILTER (WHERE published) AS published, min(created_at) AS first_late
FROM never
WHERE created_at >= CAST(:since AS timestamptz)
  AND created_at < CAST(:until AS timestamptz) - interval '1 second' * CAST(:limit_s AS double precision)
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
