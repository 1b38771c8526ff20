-- What waits to be delivered again, oldest first, and what speaks against it.
WITH letters AS MATERIALIZED (
    SELECT failed.* FROM notification.notifications failed
    WHERE failed.status = 'FAILED'
      AND CASE
          -- Without a dead letter nobody knows why it failed: only by name.
          WHEN CAST(%(named)s AS uuid[]) IS NULL THEN EXISTS (
              SELECT FROM notification.notification_dlq letter WHERE letter.notification_id = failed.notification_id
          )
          ELSE failed.event_id = ANY (%(named)s)
      END
      AND NOT EXISTS (
          SELECT FROM runbook.redriven r
          WHERE r.store = 'delivery' AND r.event_id = failed.event_id AND r.decision = 'discard'
            AND r.notification_id = failed.notification_id
      )
    -- FAILED rows have no retry time, so this is the index's own order.
    ORDER BY failed.next_retry_at, failed.created_at
    LIMIT %(most)s
), theirs AS MATERIALIZED (
    -- There is no index on the event: its user's notifications, read once. All matches are filed under one user.
    SELECT n.notification_id, n.event_id, n.status
    FROM (SELECT DISTINCT user_id FROM letters WHERE type <> 'MatchFound') users
    JOIN notification.notifications n ON n.user_id = users.user_id
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
