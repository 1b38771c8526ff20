-- question: how many dead letters came into each table in each stretch of the window, back from the moment of the run?
-- index: outbox_pick_idx, scan of the two dead-letter tables, which have no index on the time
-- cost: scan
-- answers: window
SELECT store, CAST(floor(extract(epoch FROM CAST(:as_of AS timestamptz) - at) / CAST(:bucket_s AS numeric)) AS integer) AS ago,
    count(*) AS n, max(at) AS last, bool_and(exact) AS exact
FROM (
    SELECT 'delivery' AS store, created_at AS at, true AS exact FROM notification.notification_dlq
    UNION ALL
    SELECT 'broker', created_at, true FROM notification.notification_nats_dlq
    UNION ALL
    -- When it failed is kept nowhere but in the commit time. Else: at once, or after ten tries, which take about 243 s.
    SELECT 'outbox',
        coalesce(committed_at, least(CAST(:as_of AS timestamptz), created_at
            + CASE WHEN last_error LIKE '%payload parse failure%' THEN interval '0' ELSE interval '243 seconds' END)),
        committed_at IS NOT NULL
    FROM (
        SELECT created_at, last_error,
            CASE WHEN current_setting('track_commit_timestamp') = 'on' THEN pg_xact_commit_timestamp(xmin) END AS committed_at
        FROM entitlement.outbox_events
        WHERE status = 'FAILED'
        ORDER BY next_retry_at DESC, created_at DESC
        LIMIT 20000
    ) given_up
) letters
WHERE at > CAST(:since AS timestamptz) AND at <= CAST(:as_of AS timestamptz)
GROUP BY 1, 2
ORDER BY 2
LIMIT :max_rows;
