-- question: how are the leases spread around now, in steps of 5 s?
-- index: notifications_processing_idx
-- cost: index
-- answers: present
SELECT
    -- 0 and 49 hold what lies further out; NULL holds the rows without a lease.
    -120 + 5 * (width_bucket(extract(epoch FROM lease_until - now()), -120, 120, 48) - 1) AS from_s,
    count(*) AS n
FROM notification.notifications
WHERE status = 'PROCESSING'
GROUP BY 1
ORDER BY 1;
