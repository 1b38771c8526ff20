-- question: bucket by bucket of an incident: how many notifications ended, and were late (of a span of creation)?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx, notification_dlq_notification_id_uniq
-- cost: scan
-- answers: window
-- Sent and failed count where that happened; `n` and `late` where the event occurred. Bucket -1 is all before.
WITH found AS MATERIALIZED (
    SELECT occurred_at, status, sent_at AS ended_at
    FROM notification.notifications
    WHERE status = 'SENT'
      AND created_at >= CAST(:low AS timestamptz) AND created_at < CAST(:high AS timestamptz)
    UNION ALL
    -- Apart, as these are few: else the dead letters are all read.
    SELECT n.occurred_at, n.status, coalesce(n.sent_at, d.created_at)
    FROM notification.notifications n
    LEFT JOIN notification.notification_dlq d ON d.notification_id = n.notification_id
    WHERE n.status = 'FAILED'
      AND n.created_at >= CAST(:low AS timestamptz) AND n.created_at < CAST(:high AS timestamptz)
    UNION ALL
    SELECT occurred_at, status, NULL
    FROM notification.notifications
    WHERE CAST(:with_open AS boolean) AND status IN ('PENDING', 'PROCESSING')
      AND created_at <= CAST(:until AS timestamptz)
), flows AS (
    SELECT ended_at AS at, CAST(status = 'SENT' AS integer) AS sent, CAST(status = 'FAILED' AS integer) AS failed, 0 AS n,
        0 AS late
    FROM found
    WHERE ended_at IS NOT NULL
    UNION ALL
    SELECT occurred_at, 0, 0, CAST(late OR ended_at IS NOT NULL AS integer), CAST(late AS integer)
    FROM (
        SELECT occurred_at, ended_at,
            status = 'FAILED' OR coalesce(ended_at, CAST(:until AS timestamptz)) - occurred_at
                >= interval '1 second' * CAST(:limit_s AS double precision) AS late
        FROM found
    ) judged
    WHERE late OR ended_at IS NOT NULL  -- one that is young and unsent is neither in time nor late
)
SELECT CAST(greatest(floor(extract(epoch FROM at - CAST(:since AS timestamptz)) / CAST(:bucket_s AS integer)), -1)
        AS integer) AS bucket,
    sum(sent) AS sent, sum(failed) AS failed, sum(n) AS n, sum(late) AS late
FROM flows
WHERE at < CAST(:until AS timestamptz)
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
