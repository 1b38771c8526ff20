-- question: how many rows are due for another try in each of the next tens of seconds (of 20,000 each)?
-- index: notifications_pending_idx, outbox_pick_idx
-- cost: index
-- answers: present
SELECT what, CAST(floor(extract(epoch FROM next_retry_at - now()) / 10) AS integer) AS tens_ahead, count(*) AS n
FROM (
    (SELECT 'delivery' AS what, next_retry_at FROM notification.notifications
     WHERE status = 'PENDING' AND next_retry_at > now()
     ORDER BY next_retry_at
     LIMIT 20000)
    UNION ALL
    (SELECT 'publish', next_retry_at FROM entitlement.outbox_events
     WHERE status = 'PENDING' AND next_retry_at > now()
     ORDER BY next_retry_at
     LIMIT 20000)
) waiting
GROUP BY 1, 2
ORDER BY 1, 2
LIMIT :max_rows;
