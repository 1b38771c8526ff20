-- question: how many notifications were queued since a moment (of the newest 5,000 of each kind)?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: index
-- answers: present
SELECT count(*) AS n
FROM (
    (SELECT created_at FROM notification.notifications
     WHERE status IN ('PENDING', 'PROCESSING') AND created_at > CAST(:moment AS timestamptz)
       AND created_at <= now() + interval '5 minutes'
     LIMIT 5000)
    UNION ALL
    (SELECT created_at FROM notification.notifications
     WHERE status IN ('SENT', 'FAILED') AND created_at > CAST(:moment AS timestamptz)
       AND created_at <= now() + interval '5 minutes'
     LIMIT 5000)
) created;
