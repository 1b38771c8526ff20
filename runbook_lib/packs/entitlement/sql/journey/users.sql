-- question: whose events are there in the window (of the last 20,000 notifications, and of what is not published)?
-- index: notifications_retention_*_idx, outbox_pick_idx
-- cost: index
-- answers: window
SELECT string_agg(DISTINCT user_id, E'\n') AS users FROM (
    (SELECT user_id FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED') AND created_at >= CAST(:since AS timestamptz)
      AND created_at <= CAST(:as_of AS timestamptz)
    ORDER BY created_at DESC LIMIT 20000)
    UNION ALL
    (SELECT user_id FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING') AND created_at >= CAST(:since AS timestamptz)
      AND created_at <= CAST(:as_of AS timestamptz)
    ORDER BY created_at DESC LIMIT 20000)
    UNION ALL
    (SELECT payload ->> 'user_id' FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED') AND created_at >= CAST(:since AS timestamptz)
      AND created_at <= CAST(:as_of AS timestamptz)
    LIMIT 20000)
) seen;
