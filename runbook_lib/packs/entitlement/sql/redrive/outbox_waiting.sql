-- What waits to be published again, oldest first, and what speaks against it.
SELECT
    o.event_id,
    o.failed_at,
    o.last_error AS error,
    CASE
        WHEN o.lease_until > now() THEN 'held'
        -- The broker may have stored what the relay gave up.
        WHEN EXISTS (SELECT FROM notification.processed_events p WHERE p.event_id = o.event_id)
            OR EXISTS (SELECT FROM notification.notification_dlq d WHERE d.event_id = o.event_id)
            OR EXISTS (
                SELECT FROM notification.notifications n
                WHERE n.user_id = o.payload ->> 'user_id' AND n.event_id = o.event_id
            )
            OR EXISTS (
                SELECT FROM runbook.redriven r
                WHERE r.store IN ('broker', 'delivery', 'outbox') AND r.event_id = o.event_id
                  AND r.decision = 'redrive' AND r.state = 'succeeded'
            ) THEN 'doubled'
        WHEN (
            SELECT count(*) FROM runbook.redriven r
            WHERE r.store = 'outbox' AND r.event_id = o.event_id AND r.decision = 'redrive'
        ) >= %(per_event)s THEN 'over_limit'
        -- What the publisher or the subscriber would stumble over.
        WHEN o.last_error IS NULL OR EXISTS (
            SELECT FROM unnest(CAST(%(of_event)s AS text[])) AS field
            WHERE coalesce(o.payload ->> field, '') = '' OR jsonb_typeof(o.payload -> field) <> 'string'
               OR field = 'event_id' AND o.payload ->> field !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
               OR field = 'occurred_at'
                  AND o.payload ->> field !~ '^\d{4}-\d\d-\d\dT\d\d:\d\d.*(Z|[+-]\d\d:\d\d)$'
        ) THEN 'permanent'
        -- The traces above may have been removed.
        WHEN o.created_at < now() - %(by_name_s)s * interval '1 second' THEN 'old'
        ELSE 'eligible'
    END AS verdict
FROM (
    SELECT * FROM (
        SELECT failed.*, coalesce(
                CASE WHEN current_setting('track_commit_timestamp') = 'on' THEN pg_xact_commit_timestamp(xmin) END,
                least(now(), created_at + CASE WHEN last_error = 'outbox payload parse failure' THEN interval '0'
                    ELSE %(tries_s)s * interval '1 second' END)
            ) AS failed_at
        FROM entitlement.outbox_events failed
        WHERE failed.status = 'FAILED'
          AND (CAST(%(named)s AS uuid[]) IS NULL OR failed.event_id = ANY (%(named)s))
          AND NOT EXISTS (
              SELECT FROM runbook.redriven r
              WHERE r.store = 'outbox' AND r.event_id = failed.event_id AND r.decision = 'discard'
          )
    ) given_up
    WHERE failed_at >= coalesce(CAST(%(since)s AS timestamptz), '-infinity')
    -- FAILED rows have no retry time, so this is the index's own order.
    ORDER BY next_retry_at, created_at
    LIMIT %(page)s OFFSET %(skip)s
) o
ORDER BY o.created_at, o.event_id
