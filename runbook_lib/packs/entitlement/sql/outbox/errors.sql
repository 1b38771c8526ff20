-- question: why are events not published: error texts of what failed or waits for another try (of 5,000 each)?
-- index: outbox_pick_idx
-- cost: index
-- answers: present
-- A retry time is batch start + backoff x 0.5 to 1.5, so the try was not before retry time - backoff x 1.5. If that is
-- yet to come (5 s for its clock), the backoff is another one, and nothing tells when the try was.
SELECT status, last_error, count(*) AS n, max(attempt_count) AS attempts, min(created_at) AS oldest,
    max(created_at) AS newest,
    max(greatest(created_at, CASE WHEN waited_from <= now() + interval '5 s' THEN waited_from END)) AS tried_after
FROM (
    (SELECT status, last_error, attempt_count, created_at,
        next_retry_at - interval '1.5 seconds' * least(60, 2 ^ (attempt_count - 1)) AS waited_from
     FROM entitlement.outbox_events
     WHERE status = 'FAILED'
     LIMIT 5000)
    UNION ALL
    (SELECT status, last_error, attempt_count, created_at,
        next_retry_at - interval '1.5 seconds' * least(60, 2 ^ (attempt_count - 1)) AS waited_from
     FROM entitlement.outbox_events
     WHERE status = 'PENDING' AND next_retry_at IS NOT NULL
     ORDER BY next_retry_at DESC
     LIMIT 5000)
) unpublished
WHERE status = 'FAILED' OR last_error IS NOT NULL
GROUP BY status, last_error
ORDER BY n DESC
LIMIT 50;
