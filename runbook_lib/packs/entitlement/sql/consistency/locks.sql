-- question: which rows carry a lock, or a sending time, that their status does not allow?
-- index: notifications_*_idx, outbox_*_idx; leases of all rows, the rest of the window
-- cost: index
-- answers: present
SELECT * FROM (
    (SELECT 'notification_leased' AS kind, notification_id AS id, status, locked_by, locked_at, lease_until
     FROM notification.notifications
     WHERE status IN ('PENDING', 'FAILED') AND lease_until IS NOT NULL
     LIMIT :max_rows)
    UNION ALL
    (SELECT 'notification_locked', notification_id, status, locked_by, locked_at, lease_until
     FROM notification.notifications
     WHERE status IN ('PENDING', 'PROCESSING') AND status = 'PENDING'
       AND created_at >= CAST(:since AS timestamptz)
       AND lease_until IS NULL AND (locked_by IS NOT NULL OR locked_at IS NOT NULL)
     LIMIT :max_rows)
    UNION ALL
    (SELECT 'notification_locked', notification_id, status, locked_by, locked_at, lease_until
     FROM notification.notifications
     WHERE status IN ('SENT', 'FAILED') AND status = 'FAILED'
       AND created_at >= CAST(:since AS timestamptz)
       AND lease_until IS NULL AND (locked_by IS NOT NULL OR locked_at IS NOT NULL)
     LIMIT :max_rows)
    UNION ALL
    (SELECT 'processing_without_owner', notification_id, status, locked_by, locked_at, lease_until
     FROM notification.notifications
     WHERE status = 'PROCESSING' AND (locked_by IS NULL OR lease_until IS NULL)
     LIMIT :max_rows)
    UNION ALL
    (SELECT 'sending_time', notification_id, status, locked_by, locked_at, lease_until
     FROM notification.notifications
     WHERE status IN ('SENT', 'FAILED') AND created_at >= CAST(:since AS timestamptz)
       AND (status = 'SENT') <> (sent_at IS NOT NULL)
     LIMIT :max_rows)
    UNION ALL
    (SELECT 'sending_time', notification_id, status, locked_by, locked_at, lease_until
     FROM notification.notifications
     WHERE status IN ('PENDING', 'PROCESSING') AND created_at >= CAST(:since AS timestamptz)
       AND sent_at IS NOT NULL
     LIMIT :max_rows)
    UNION ALL
    (SELECT 'outbox_published_locked', event_id, status, locked_by, locked_at, lease_until
     FROM entitlement.outbox_events
     WHERE status = 'PUBLISHED' AND published_at >= CAST(:since AS timestamptz)
       AND (locked_by IS NOT NULL OR locked_at IS NOT NULL OR lease_until IS NOT NULL)
     LIMIT :max_rows)
    UNION ALL
    (SELECT 'outbox_locked', event_id, status, locked_by, locked_at, lease_until
     FROM (
         SELECT event_id, status, locked_by, locked_at, lease_until FROM entitlement.outbox_events
         WHERE status IN ('PENDING', 'FAILED')
         LIMIT 20000
     ) unleased
     WHERE locked_by IS NOT NULL OR locked_at IS NOT NULL OR lease_until IS NOT NULL)
    UNION ALL
    (SELECT 'in_flight_without_owner', event_id, status, locked_by, locked_at, lease_until
     FROM entitlement.outbox_events
     WHERE status = 'IN_FLIGHT' AND (locked_by IS NULL OR lease_until IS NULL)
     LIMIT :max_rows)
) odd
LIMIT :max_rows;
