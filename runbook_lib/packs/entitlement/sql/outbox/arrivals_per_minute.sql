-- question: how many outbox events were created in each minute of the window?
-- index: outbox_pick_idx alone
-- cost: scan
-- answers: window
SELECT date_trunc('minute', created_at) AS minute, count(*) AS n
FROM (
    SELECT created_at FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND next_retry_at IS NULL AND created_at >= CAST(:since AS timestamptz)
    UNION ALL
    -- Published after a failure: the retry time stays, and lies after the creation.
    SELECT created_at FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND next_retry_at >= CAST(:since AS timestamptz) - interval '1 minute'
    UNION ALL
    SELECT created_at FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
) created
WHERE created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
