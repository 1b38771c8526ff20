-- What waits to be delivered again, oldest first, and what speaks against it.
WITH letters AS MATERIALIZED (
    SELECT failed.*, letter.error_message, coalesce(letter.created_at, failed.created_at) AS failed_at
    FROM notification.notifications failed
    -- One row at a time: a hash of all dead letters would lose the index's order.
    LEFT JOIN LATERAL (
        SELECT * FROM notification.notification_dlq d WHERE d.notification_id = failed.notification_id LIMIT 1
    ) letter ON true
    WHERE failed.status = 'FAILED'
      AND CASE
          -- Without a dead letter nobody knows why it failed: only by name.
          WHEN CAST(%(named)s AS uuid[]) IS NULL THEN letter.notification_id IS NOT NULL
          ELSE failed.event_id = ANY (%(named)s)
      END
      AND coalesce(letter.created_at, failed.created_at) >= coalesce(CAST(%(since)s AS timestamptz), '-infinity')
      AND NOT EXISTS (
          SELECT FROM runbook.redriven r
          WHERE r.store = 'delivery' AND r.event_id = failed.event_id AND r.decision = 'discard'
            AND r.notification_id = failed.notification_id
      )
    -- FAILED rows have no retry time, so this is the index's own order.
    ORDER BY failed.next_retry_at, failed.created_at
    LIMIT %(page)s OFFSET %(skip)s
), places AS (
    -- There is no index on the event: its user's notifications, read once. All matches are filed under one user: those
    -- that were created about the same time.
    SELECT user_id, CAST('-infinity' AS timestamptz) AS low, CAST('infinity' AS timestamptz) AS high
    FROM letters WHERE type <> 'MatchFound'
    UNION
    SELECT user_id, to_timestamp(slot * %(near_s)s), to_timestamp((slot + 1) * %(near_s)s)
    FROM letters, generate_series(-1, 1) AS beside,
        LATERAL (SELECT floor(extract(epoch FROM created_at) / %(near_s)s) + beside AS slot) near
    WHERE type = 'MatchFound'
), theirs AS MATERIALIZED (
    SELECT n.notification_id, n.event_id, n.status
    FROM places
    JOIN notification.notifications n
        ON n.user_id = places.user_id AND n.created_at >= places.low AND n.created_at < places.high
), doubled AS MATERIALIZED (
    -- Another notification of the event was delivered, is about to be, or stands before this one.
    SELECT DISTINCT l.notification_id
    FROM letters l
    JOIN theirs other ON other.event_id = l.event_id AND other.notification_id <> l.notification_id
    WHERE other.status <> 'FAILED' OR other.notification_id < l.notification_id
)
SELECT
    n.notification_id,
    n.event_id,
    n.failed_at,
    n.error_message AS error,
    n.type = 'MatchFound' AS is_match,
    CASE
        WHEN n.lease_until > now() THEN 'held'
        WHEN EXISTS (SELECT FROM doubled d WHERE d.notification_id = n.notification_id) THEN 'doubled'
        WHEN (
            SELECT count(*) FROM runbook.redriven r
            WHERE r.store = 'delivery' AND r.event_id = n.event_id AND r.decision = 'redrive'
        ) >= %(per_event)s THEN 'over_limit'
        WHEN EXISTS (
            SELECT FROM unnest(CASE WHEN n.type = 'MatchFound' THEN CAST(%(of_match)s AS text[]) ELSE %(of_event)s END)
                AS field
            WHERE coalesce(n.payload_json ->> field, '') = ''
        ) THEN 'permanent'
        ELSE 'eligible'
    END AS verdict
FROM letters n
ORDER BY n.created_at, n.notification_id
