-- question: which SENT rows carry a lease or a retry time (of all), or a lock's name (of the window)?
-- index: notifications_processing_idx, notifications_pending_idx, notifications_retention_sent_failed_idx
-- cost: index
-- answers: present
WITH leased AS (
    SELECT notification_id, event_id, locked_by, lease_until, next_retry_at, created_at, sent_at
    FROM notification.notifications
    WHERE status = 'SENT' AND lease_until IS NOT NULL
    ORDER BY lease_until
    LIMIT :max_rows
), retrying AS (
    SELECT notification_id, event_id, locked_by, lease_until, next_retry_at, created_at, sent_at
    FROM notification.notifications
    WHERE status = 'SENT' AND next_retry_at IS NOT NULL
    ORDER BY next_retry_at
    LIMIT :max_rows
), locked AS (
    SELECT notification_id, event_id, locked_by, lease_until, next_retry_at, created_at, sent_at
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED') AND status = 'SENT'
      AND created_at >= CAST(:since AS timestamptz)
      AND (locked_by IS NOT NULL OR locked_at IS NOT NULL)
    ORDER BY created_at DESC
    LIMIT :max_rows
)
SELECT * FROM leased
UNION
SELECT * FROM retrying
UNION
SELECT * FROM locked
LIMIT :max_rows;
