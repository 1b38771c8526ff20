-- question: which relays hold rows at this moment, and since when?
-- index: outbox_inflight_lease_idx
-- cost: index
-- answers: present
SELECT locked_by, count(*) AS n, extract(epoch FROM now() - max(locked_at)) AS since_claim_s
FROM entitlement.outbox_events
WHERE status = 'IN_FLIGHT'
GROUP BY locked_by
ORDER BY n DESC
LIMIT :max_rows;
