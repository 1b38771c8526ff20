-- question: which events were published last?
-- index: outbox_published_at_idx
-- cost: index
-- answers: window
SELECT event_id, created_at, published_at FROM entitlement.outbox_events
WHERE status = 'PUBLISHED' ORDER BY published_at DESC LIMIT 20;
