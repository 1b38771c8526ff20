-- question: stretch by stretch, how many events were published, processed, and waited between (of a span of publishing)?
-- index: outbox_published_at_idx, processed_events_processed_at_idx
-- cost: scan
-- answers: window
-- continued in: past/levels
-- An event waits from its publishing, a batch start, to its processing; what was never processed is in no count here.
WITH found AS (
    SELECT o.published_at AS created_at, p.processed_at AS ended_at, 0 AS attempt_count, false AS given_up
    FROM entitlement.outbox_events o
    JOIN notification.processed_events p ON p.event_id = o.event_id
    WHERE o.status = 'PUBLISHED'
      AND o.published_at >= CAST(:low AS timestamptz) AND o.published_at < CAST(:high AS timestamptz)
      -- Processed after it was published, bar clocks that are apart; the bounds keep the join to a part of the table.
      AND p.processed_at >= CAST(:low AS timestamptz) - interval '10 minutes'
      AND p.processed_at < CAST(:high AS timestamptz) + interval '1 hour'
)
