-- question: how many notifications came and were sent in each 10 s, back from the moment of the run?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: scan
-- answers: window
-- reuse: 15 s
WITH flows AS (
    SELECT created_at AS at, 1 AS arrived, 0 AS gone, false AS event FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED')
      AND created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT created_at, 1, 0, false FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING')
      AND created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    -- There is no index on sent_at: what was sent now was created within `created_since`.
    SELECT sent_at, 0, 1, type <> 'MatchFound' FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED') AND created_at > CAST(:created_since AS timestamptz)
      AND sent_at > CAST(:since AS timestamptz) AND sent_at <= CAST(:as_of AS timestamptz)
)
SELECT CAST(floor(extract(epoch FROM CAST(:as_of AS timestamptz) - at) / 10) AS integer) AS tens_ago,
    sum(arrived) AS arrived, sum(gone) AS gone,
    coalesce(sum(arrived) FILTER (WHERE at > CAST(:as_of AS timestamptz) - interval '4 seconds'), 0) AS arrived_now,
    coalesce(sum(gone) FILTER (WHERE at > CAST(:as_of AS timestamptz) - interval '4 seconds'), 0) AS gone_now,
    count(*) FILTER (WHERE event AND at > CAST(:as_of AS timestamptz) - interval '4 seconds') AS events_gone_now
FROM flows
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
