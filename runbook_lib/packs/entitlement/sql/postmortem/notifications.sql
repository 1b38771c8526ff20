-- question: bucket by bucket of an incident: how many notifications came, ended, waited and were late (of a span of creation)?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: scan
-- answers: window
-- column: bucket number
-- column: came rows
-- column: ended rows
-- column: sent rows
-- column: failed rows
-- column: n rows
-- column: late rows
-- column: slow rows
-- column: first_late time
-- column: first_slow time
-- column: rise number
-- Came and ended count where that happened; `n`, `slow` and `late` count where the event occurred. Bucket -1 is all
-- before. `rise`: how far the number of the unfinished rose in the bucket above that of its beginning.
WITH found AS MATERIALIZED (
    SELECT n.occurred_at, n.created_at, n.status, coalesce(n.sent_at, d.created_at) AS ended_at
    FROM notification.notifications n
    LEFT JOIN notification.notification_dlq d ON d.notification_id = n.notification_id
    WHERE n.status IN ('SENT', 'FAILED')
      AND n.created_at >= CAST(:low AS timestamptz) AND n.created_at < CAST(:high AS timestamptz)
    UNION ALL
    SELECT occurred_at, created_at, status, NULL
    FROM notification.notifications
    WHERE CAST(:with_open AS boolean) AND status IN ('PENDING', 'PROCESSING')
      AND created_at <= CAST(:until AS timestamptz)
), flows AS (
    SELECT created_at AS at, 1 AS came, 0 AS ended, 0 AS sent, 0 AS failed, 0 AS n, 0 AS late, 0 AS slow,
        CAST(NULL AS timestamptz) AS first_late, CAST(NULL AS timestamptz) AS first_slow
    FROM found
    UNION ALL
    SELECT ended_at, 0, 1, CAST(status = 'SENT' AS integer), CAST(status = 'FAILED' AS integer), 0, 0, 0, NULL, NULL
    FROM found
    WHERE ended_at IS NOT NULL
    UNION ALL
    SELECT occurred_at, 0, 0, 0, 0, CAST(late OR ended_at IS NOT NULL AS integer), CAST(late AS integer),
        CAST(slow AS integer), CASE WHEN late THEN occurred_at END, CASE WHEN slow THEN occurred_at END
    FROM (
        SELECT occurred_at, ended_at,
            status = 'FAILED' OR took >= interval '1 second' * CAST(:limit_s AS double precision) AS late,
            status = 'FAILED' OR took >= interval '1 second' * CAST(:slow_s AS double precision) AS slow
        FROM (SELECT *, coalesce(ended_at, CAST(:until AS timestamptz)) - occurred_at AS took FROM found) timed
    ) judged
    WHERE late OR slow OR ended_at IS NOT NULL  -- one that is young and unsent is neither in time nor late
), leveled AS (
    SELECT *, sum(came - ended) OVER (ORDER BY at) AS level
    FROM flows
    WHERE at < CAST(:until AS timestamptz)
)
SELECT CAST(greatest(floor(extract(epoch FROM at - CAST(:since AS timestamptz)) / CAST(:bucket_s AS integer)), -1)
        AS integer) AS bucket,
    sum(came) AS came, sum(ended) AS ended, sum(sent) AS sent, sum(failed) AS failed, sum(n) AS n, sum(late) AS late,
    sum(slow) AS slow, min(first_late) AS first_late, min(first_slow) AS first_slow,
    max(level) - sum(sum(came - ended)) OVER (ORDER BY min(at)) + sum(came - ended) AS rise
FROM leveled
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
