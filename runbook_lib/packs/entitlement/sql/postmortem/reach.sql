-- question: how far back do the rows reach that were sent, or published?
-- index: notifications_retention_sent_failed_idx, outbox_published_at_idx
-- cost: index
-- answers: window
SELECT now() AS now,
    (SELECT min(created_at) FROM notification.notifications WHERE status IN ('SENT', 'FAILED')) AS ended_since,
    (SELECT min(published_at) FROM entitlement.outbox_events WHERE status = 'PUBLISHED') AS published_since;
