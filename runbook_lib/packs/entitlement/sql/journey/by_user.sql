-- question: which events of the window are this user's, the newest first?
-- index: outbox_published_at_idx, outbox_pick_idx, notifications_user_idx
-- cost: index
-- answers: window
SELECT event_id, max(at) AS at FROM (
    SELECT event_id, created_at AS at FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at >= CAST(:since AS timestamptz) - interval '1 minute'
      AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
      AND starts_with(aggregate_key, CAST(:typed_user AS text) || ':') AND coalesce(payload ->> 'user_id', CAST(:typed_user AS text)) = CAST(:typed_user AS text)
    UNION ALL
    SELECT event_id, created_at FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
      AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
      AND starts_with(aggregate_key, CAST(:typed_user AS text) || ':') AND coalesce(payload ->> 'user_id', CAST(:typed_user AS text)) = CAST(:typed_user AS text)
    UNION ALL
    SELECT event_id, occurred_at FROM notification.notifications
    WHERE user_id = CAST(:typed_user AS text)
      AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
) theirs
GROUP BY event_id
ORDER BY at DESC
LIMIT :max_rows;
