-- question: why are events not published: error texts of what failed or waits for another try (of 5,000 each)?
-- index: outbox_pick_idx
-- cost: index
-- answers: present
-- column: status text
-- column: last_error text
-- column: n rows
-- column: attempts number
-- column: oldest time
-- column: newest time
SELECT status, last_error, count(*) AS n, max(attempt_count) AS attempts, min(created_at) AS oldest,
    max(created_at) AS newest
FROM (
    (SELECT status, last_error, attempt_count, created_at
     FROM entitlement.outbox_events
     WHERE status = 'FAILED'
     LIMIT 5000)
    UNION ALL
    (SELECT status, last_error, attempt_count, created_at
     FROM entitlement.outbox_events
     WHERE status = 'PENDING' AND next_retry_at IS NOT NULL
     ORDER BY next_retry_at DESC
     LIMIT 5000)
) unpublished
WHERE status = 'FAILED' OR last_error IS NOT NULL
GROUP BY status, last_error
ORDER BY n DESC
LIMIT 50;
