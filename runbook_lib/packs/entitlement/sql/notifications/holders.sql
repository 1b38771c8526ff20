-- question: what does each worker hold, since when, and for how long?
-- index: notifications_processing_idx
-- cost: index
-- answers: present
SELECT
    now() AS now,
    locked_by,
    count(*) AS n,
    count(*) FILTER (WHERE lease_until <= now()) AS expired,
    count(*) FILTER (WHERE lease_until IS NULL) AS without_lease,
    extract(epoch FROM now() - min(lease_until) FILTER (WHERE lease_until <= now())) AS expired_for_s,
    max(locked_at) AS last_claim,
    extract(epoch FROM now() - max(locked_at)) AS since_claim_s,
    extract(epoch FROM min(lease_until - locked_at)) AS shortest_lease_s,
    extract(epoch FROM max(lease_until - locked_at)) AS longest_lease_s,
    extract(epoch FROM max(lease_until) - now()) AS furthest_s
FROM notification.notifications
WHERE status = 'PROCESSING'
GROUP BY locked_by
ORDER BY n DESC
LIMIT :max_rows;
