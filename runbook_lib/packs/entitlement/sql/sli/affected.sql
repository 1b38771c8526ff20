-- question: how many events and users wait for longer than they should, and where (of 20,000 in each place)?
-- index: outbox_pick_idx, outbox_published_at_idx, processed_events_*, notifications_retention_active_idx, notifications_user_idx, notification_dlq_event_idx
-- cost: index
-- answers: present
WITH published AS MATERIALIZED (
    SELECT event_id, aggregate_key, created_at, published_at FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at >= CAST(:since AS timestamptz)
      AND published_at < now() - interval '1 second' * CAST(:late_s AS double precision)
    ORDER BY published_at DESC
    LIMIT 20000
), processed AS MATERIALIZED (
    -- Nearly all of them lie side by side here: processed after it was published, bar clocks that are apart.
    SELECT event_id FROM notification.processed_events
    WHERE processed_at >= (SELECT min(published_at) FROM published) - interval '1 minute'
    ORDER BY processed_at
    LIMIT 60000
), missing AS MATERIALIZED (
    SELECT o.event_id, o.aggregate_key, o.created_at
    FROM published o
    LEFT JOIN processed p ON p.event_id = o.event_id
    WHERE p.event_id IS NULL
), late AS (
    (SELECT 'outbox' AS place, substring(aggregate_key FROM '^(.*):[^:]*$') AS who, created_at
     FROM entitlement.outbox_events
     WHERE status IN ('PENDING', 'IN_FLIGHT')
       AND created_at < now() - interval '1 second' * CAST(:late_s AS double precision)
     LIMIT 20000)
    UNION ALL
    (SELECT 'outbox_failed', substring(aggregate_key FROM '^(.*):[^:]*$'), created_at
     FROM entitlement.outbox_events
     WHERE status = 'FAILED'
     LIMIT 20000)
    UNION ALL
    SELECT 'broker', substring(aggregate_key FROM '^(.*):[^:]*$'), created_at
    FROM missing
    WHERE (SELECT true FROM notification.processed_events p WHERE p.event_id = missing.event_id LIMIT 1) IS NULL
      -- Its notification or dead letter shows that it was processed, and that the registration was deleted.
      AND (SELECT true FROM notification.notifications n
           WHERE n.user_id = substring(missing.aggregate_key FROM '^(.*):[^:]*$') AND n.event_id = missing.event_id
           LIMIT 1) IS NULL
      AND (SELECT true FROM notification.notification_dlq d WHERE d.event_id = missing.event_id LIMIT 1) IS NULL
    UNION ALL
    (SELECT 'notification', user_id, occurred_at
     FROM notification.notifications
     WHERE status IN ('PENDING', 'PROCESSING')
       AND created_at < now() - interval '1 second' * CAST(:late_s AS double precision)
     LIMIT 20000)
)
SELECT coalesce(place, 'all') AS place, count(*) AS events, count(DISTINCT who) AS users,
    extract(epoch FROM now() - min(least(created_at, now()))) AS oldest_s
FROM late
GROUP BY ROLLUP (place)
ORDER BY place;
