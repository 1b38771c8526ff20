-- question: how many events came into the outbox and were published in each 10 s, and how many late or after a failure?
-- index: outbox_published_at_idx, outbox_pick_idx
-- cost: scan
-- answers: window
-- reuse: 15 s
WITH flows AS (
    SELECT created_at AS at, 1 AS arrived, 0 AS gone, false AS tried, false AS slow FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at > CAST(:since AS timestamptz) - interval '1 minute'
      AND created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT created_at, 1, 0, false, false FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
      AND created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT published_at, 0, 1, attempt_count > 0,
        published_at - created_at >= interval '1 second' * CAST(:limit_s AS double precision)
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at > CAST(:since AS timestamptz) AND published_at <= CAST(:as_of AS timestamptz)
)
SELECT CAST(floor(extract(epoch FROM CAST(:as_of AS timestamptz) - at) / 10) AS integer) AS tens_ago,
    sum(arrived) AS arrived, sum(gone) AS gone,
    coalesce(sum(arrived) FILTER (WHERE at > CAST(:as_of AS timestamptz) - interval '4 seconds'), 0) AS arrived_now,
    coalesce(sum(gone) FILTER (WHERE at > CAST(:as_of AS timestamptz) - interval '4 seconds'), 0) AS gone_now,
    count(*) FILTER (WHERE tried OR slow) AS late,
    count(*) FILTER (WHERE tried) AS tried,
    max(at) FILTER (WHERE tried OR slow) AS last_late
FROM flows
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
