-- question: how many events came into the outbox and were published in each 10 s, and how many late or after a failure?
-- index: outbox_published_at_idx, outbox_pick_idx
-- cost: scan
-- answers: window
SELECT CAST(floor(extract(epoch FROM CAST(:as_of AS timestamptz) - at) / 10) AS integer) AS tens_ago,
    sum(arrived) AS arrived, sum(gone) AS gone,
    coalesce(sum(arrived) FILTER (WHERE at > CAST(:as_of AS timestamptz) - interval '4 seconds'), 0) AS arrived_now,
    coalesce(sum(gone) FILTER (WHERE at > CAST(:as_of AS timestamptz) - interval '4 seconds'), 0) AS gone_now,
    count(*) FILTER (WHERE tried OR slow) AS late,
    count(*) FILTER (WHERE tried) AS tried,
    max(at) FILTER (WHERE tried OR slow) AS last_late
FROM (
    SELECT created_at, published_at, attempt_count > 0 AS again,
        published_at - created_at >= interval '1 second' * CAST(:limit_s AS double precision) AS over
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at > CAST(:since AS timestamptz) - interval '1 minute'
    UNION ALL
    SELECT created_at, NULL, false, false
    FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED') AND created_at > CAST(:since AS timestamptz)
) events
CROSS JOIN LATERAL (
    VALUES (created_at, 1, 0, false, false), (published_at, 0, 1, again, over)
) AS flow (at, arrived, gone, tried, slow)
WHERE at > CAST(:since AS timestamptz) AND at <= CAST(:as_of AS timestamptz)
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
