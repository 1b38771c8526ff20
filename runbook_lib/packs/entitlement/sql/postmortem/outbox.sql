-- question: bucket by bucket of an incident: how many events were published, and were late (of a span of publishing)?
-- index: outbox_published_at_idx, outbox_pick_idx
-- cost: scan
-- answers: window
-- An event is old from `old_s` after its creation until it is published. Bucket -1 is all before. `aged`: at some
-- moment of the bucket more than `share` of the unpublished were old; `most_old`: so many were at once.
WITH found AS MATERIALIZED (
    SELECT created_at, published_at, status
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at >= CAST(:low AS timestamptz) AND published_at < CAST(:high AS timestamptz)
    UNION ALL
    SELECT created_at, NULL, status
    FROM entitlement.outbox_events
    WHERE CAST(:with_open AS boolean) AND status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
      AND created_at <= CAST(:until AS timestamptz)
), aged AS (
    SELECT created_at, published_at, status, created_at + interval '1 second' * CAST(:old_s AS double precision) AS old_at,
        coalesce(published_at, CAST(:until AS timestamptz)) - created_at AS took
    FROM found
), flows AS (
    SELECT created_at AS at, CAST(status <> 'FAILED' AS integer) AS opened, 0 AS published, 0 AS old_in, 0 AS old_out,
        0 AS n, 0 AS late, 0 AS old
    FROM aged
    UNION ALL
    SELECT published_at, 0, 1, 0, CAST(published_at > old_at AS integer), 0, 0, 0
    FROM aged
    WHERE published_at IS NOT NULL
    UNION ALL
    -- When a row became FAILED is not kept, so it takes no part in how old the unpublished were.
    SELECT old_at, 0, 0, 1, 0, 0, 0, 0
    FROM aged
    WHERE status <> 'FAILED' AND coalesce(published_at, CAST(:until AS timestamptz)) > old_at
    UNION ALL
    SELECT created_at, 0, 0, 0, 0, 1, CAST(late AS integer), CAST(old AS integer)
    FROM (
        SELECT created_at, published_at,
            status = 'FAILED' OR took >= interval '1 second' * CAST(:limit_s AS double precision) AS late,
            status = 'FAILED' OR took >= interval '1 second' * CAST(:old_s AS double precision) AS old
        FROM aged
    ) judged
    WHERE late OR published_at IS NOT NULL
), leveled AS (
    SELECT *, sum(opened - published) OVER (ORDER BY at) AS unpublished, sum(old_in - old_out) OVER (ORDER BY at) AS aging
    FROM flows
    WHERE at < CAST(:until AS timestamptz)
)
SELECT CAST(greatest(floor(extract(epoch FROM at - CAST(:since AS timestamptz)) / CAST(:bucket_s AS integer)), -1)
        AS integer) AS bucket,
    sum(opened) AS opened, sum(published) AS published, sum(old_in) AS old_in, sum(old_out) AS old_out, sum(n) AS n,
    sum(late) AS late, sum(old) AS old, max(aging) AS most_old,
    max(CAST(aging > 0 AND aging > CAST(:share AS double precision) * unpublished AS integer)) AS aged
FROM leveled
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
