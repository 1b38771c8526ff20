-- question: which events that the relay gave up belong to an incident (exact where commit times are kept), of 20,000?
-- index: outbox_pick_idx
-- cost: index
-- answers: window
-- Without commit times: those created in it, or so shortly before that their ten tries may have ended in it.
SELECT count(*) AS total,
    count(*) FILTER (
        WHERE CASE WHEN failed_at IS NOT NULL THEN failed_at >= CAST(:since AS timestamptz)
                ELSE created_at >= CAST(:since AS timestamptz) - interval '1 second' * CAST(:tries_s AS double precision)
            END
            AND coalesce(failed_at, created_at) < CAST(:until AS timestamptz)
    ) AS n,
    min(failed_at) FILTER (
        WHERE failed_at >= CAST(:since AS timestamptz) AND failed_at < CAST(:until AS timestamptz)
    ) AS first_failed
FROM (
    SELECT created_at,
        CASE WHEN current_setting('track_commit_timestamp') = 'on' THEN pg_xact_commit_timestamp(xmin) END AS failed_at
    FROM entitlement.outbox_events
    WHERE status = 'FAILED'
    LIMIT 20000
) failed;
