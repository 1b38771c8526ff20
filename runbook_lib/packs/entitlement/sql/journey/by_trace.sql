-- question: which events carry this trace id: of all that the outbox has, and of the window's notifications?
-- index: scan of outbox_events, which keeps a day; notifications_retention_*_idx
-- cost: scan
-- answers: window
SELECT event_id FROM entitlement.outbox_events WHERE payload ->> 'trace_id' = :typed_id
UNION
SELECT event_id FROM notification.notifications
WHERE status IN ('SENT', 'FAILED') AND created_at >= CAST(:since AS timestamptz)
  AND created_at <= CAST(:as_of AS timestamptz) AND payload_json ->> 'trace_id' = :typed_id
UNION
SELECT event_id FROM notification.notifications
WHERE status IN ('PENDING', 'PROCESSING') AND created_at >= CAST(:since AS timestamptz)
  AND created_at <= CAST(:as_of AS timestamptz) AND payload_json ->> 'trace_id' = :typed_id
LIMIT :max_rows;
