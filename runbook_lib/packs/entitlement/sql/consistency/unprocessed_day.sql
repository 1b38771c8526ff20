-- question: which events of the last 24 h were published, long enough ago, and never processed?
-- index: scan
-- cost: scan
-- answers: window
SELECT o.event_id, o.event_type, o.created_at, o.published_at
FROM entitlement.outbox_events o
LEFT JOIN notification.processed_events p ON p.event_id = o.event_id
WHERE o.status = 'PUBLISHED'
  AND o.published_at >= CAST(:as_of AS timestamptz) - interval '24 hours'
  AND o.published_at < CAST(:as_of AS timestamptz) - make_interval(secs => CAST(:settled_s AS float8))
  AND p.event_id IS NULL
ORDER BY o.published_at DESC
LIMIT :max_rows;
