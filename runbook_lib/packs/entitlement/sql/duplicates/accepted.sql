-- question: how many notifications were queued since a moment, and for how many events?
-- index: notifications_retention_sent_failed_idx, notifications_retention_active_idx
-- cost: index
-- answers: present
SELECT
    -- Matches come by a stream and a consumer of their own.
    count(DISTINCT event_id) FILTER (WHERE type <> 'MatchFound') AS events,
    count(*) - count(DISTINCT event_id) AS doubled
FROM (
    SELECT event_id, type FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED') AND created_at >= CAST(:from AS timestamptz)
    UNION ALL
    SELECT event_id, type FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING') AND created_at >= CAST(:from AS timestamptz)
    LIMIT 60000
) queued;
