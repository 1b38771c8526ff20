-- question: how many notifications came and were sent in each 10 s, and how many of them late or after a failure?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: scan
-- answers: window
WITH flows AS (
    SELECT created_at AS at, 1 AS arrived, 0 AS gone, false AS event, false AS tried, false AS slow
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT created_at, 1, 0, false, false, false FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
      AND created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    -- There is no index on sent_at: what was sent now was created within `created_since`.
    SELECT sent_at, 0, 1, type <> 'MatchFound', attempt_count > 0,
        sent_at - occurred_at >= interval '1 second' * CAST(:limit_s AS double precision)
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED') AND created_at > CAST(:created_since AS timestamptz)
      AND sent_at > CAST(:since AS timestamptz) AND sent_at <= CAST(:as_of AS timestamptz)
)
SELECT CAST(floor(extract(epoch FROM CAST(:as_of AS timestamptz) - at) / 10) AS integer) AS tens_ago,
    sum(arrived) AS arrived, sum(gone) AS gone,
    coalesce(sum(arrived) FILTER (WHERE at > CAST(:as_of AS timestamptz) - interval '4 seconds'), 0) AS arrived_now,
    coalesce(sum(gone) FILTER (WHERE at > CAST(:as_of AS timestamptz) - interval '4 seconds'), 0) AS gone_now,
    count(*) FILTER (WHERE event AND at > CAST(:as_of AS timestamptz) - interval '4 seconds') AS events_gone_now,
    count(*) FILTER (WHERE tried OR slow) AS late,
    count(*) FILTER (WHERE tried) AS tried,
    max(at) FILTER (WHERE tried OR slow) AS last_late
FROM flows
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
