-- question: which tries to publish certainly failed since a moment, told by the retry time that each left behind?
-- index: outbox_pick_idx
-- cost: index
-- answers: present
-- A retry time is batch start + backoff x 0.5 to 1.5, so the try was not before retry time - backoff x 1.5. If that is
-- yet to come (5 s for its clock), the backoff is another one, and nothing tells when the try was.
SELECT
    part,
    count(*) FILTER (WHERE tried_after BETWEEN CAST(:tried_since AS timestamptz) AND now() + interval '5 s') AS failed,
    count(*) FILTER (WHERE tried_after BETWEEN now() - interval '2 s' AND now() + interval '5 s') AS failed_now,
    count(*) FILTER (WHERE next_retry_at > now()) AS waiting,
    count(*) FILTER (WHERE next_retry_at <= now()) AS due_again
FROM (
    SELECT 'publish' AS part, next_retry_at,
        next_retry_at - interval '1.5 seconds' * least(60, 2 ^ (attempt_count - 1)) AS tried_after
    FROM entitlement.outbox_events
    WHERE status = 'PENDING' AND next_retry_at IS NOT NULL AND attempt_count > 0
    ORDER BY next_retry_at DESC
    LIMIT 20000
) tried
GROUP BY part;
