-- question: stretch by stretch, how many events came, were published, and waited between (of a span of publishing)?
-- index: outbox_published_at_idx, outbox_pick_idx
-- cost: scan
-- answers: window
-- continued in: past/levels
-- An event waits from its creation to the batch start in which it was published, or to when it was given up where commit
-- times are kept. Those that wait to this day are there `with_open`.
WITH found AS (
    SELECT created_at, published_at AS ended_at, attempt_count, false AS given_up
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED'
      AND published_at >= CAST(:low AS timestamptz) AND published_at < CAST(:high AS timestamptz)
    UNION ALL
    SELECT created_at,
        CASE WHEN status = 'FAILED' AND current_setting('track_commit_timestamp') = 'on'
            THEN pg_xact_commit_timestamp(xmin) END,
        attempt_count, status = 'FAILED'
    FROM entitlement.outbox_events
    WHERE CAST(:with_open AS boolean) AND status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
      AND created_at < CAST(:until AS timestamptz)
)
