-- question: when was an event of the outbox last registered and queued, and how many in the last minute (of 5,000 rows each)?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: index
-- answers: present
-- A time that is further ahead than clocks differ is not read: 4.3.5 counts such rows.
-- Match events come from another stream, and the subscriber registers and queues an event at one time.
WITH ended AS (
    SELECT created_at, type FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED') AND created_at <= now() + interval '5 minutes'
    ORDER BY created_at DESC
    LIMIT 5000
), active AS (
    SELECT created_at, type FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING') AND created_at <= now() + interval '5 minutes'
    ORDER BY created_at DESC
    LIMIT 5000
)
SELECT
    now() AS now,
    -- Among match events alone: no other came since the oldest of them.
    coalesce(
        max(created_at) FILTER (WHERE type <> 'MatchFound'),
        greatest((SELECT min(created_at) FROM ended), (SELECT min(created_at) FROM active))
    ) AS last_processed,
    count(*) FILTER (WHERE type <> 'MatchFound' AND created_at > now() - interval '1 minute') AS processed_1m
FROM (SELECT created_at, type FROM ended UNION ALL SELECT created_at, type FROM active) newest;
