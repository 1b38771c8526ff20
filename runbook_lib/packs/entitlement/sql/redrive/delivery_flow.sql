-- Does delivery work? Seconds since the newest failure, tries that failed and wait, and whether due rows are left lying.
SELECT
    (SELECT extract(epoch FROM now() - max(created_at)) FROM notification.notification_dlq) AS failed_s,
    (SELECT count(*) FROM (
        SELECT FROM notification.notifications
        WHERE status = 'PENDING' AND next_retry_at > now() AND attempt_count > 0
        LIMIT 1000
    ) retrying) AS retrying,
    EXISTS (
        SELECT FROM notification.notifications
        WHERE status = 'PENDING' AND next_retry_at <= now() - %(lease_s)s * interval '1 second'
    ) OR EXISTS (
        SELECT FROM notification.notifications
        WHERE status = 'PENDING' AND next_retry_at IS NULL AND created_at <= now() - %(lease_s)s * interval '1 second'
          -- What was sent again is as old as its event.
          AND NOT EXISTS (
              SELECT FROM runbook.redriven r
              WHERE r.store = 'delivery' AND r.event_id = notifications.event_id AND r.decision = 'redrive'
          )
    ) OR EXISTS (
        SELECT FROM notification.notifications
        WHERE status = 'PROCESSING' AND lease_until <= now() - %(lease_s)s * interval '1 second'
    ) AS overdue
