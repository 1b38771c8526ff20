-- What waits to be published again, oldest first, and what speaks against it.
SELECT
    o.event_id,
    CASE
        WHEN o.lease_until > now() THEN 'held'
        WHEN (
            SELECT count(*) FROM runbook.redriven r
            WHERE r.store = 'outbox' AND r.event_id = o.event_id AND r.decision = 'redrive'
        ) >= %(per_event)s THEN 'over_limit'
        -- The publisher's words for what is wrong with the event itself; and what it would stumble over.
        WHEN o.last_error IS NULL
            OR o.last_error IN ('outbox payload parse failure', 'text', 'unknown error')
            OR starts_with(o.last_error, 'unknown event type: ')
            OR EXISTS (
                SELECT FROM unnest(CAST(%(of_event)s AS text[])) AS field WHERE coalesce(o.payload ->> field, '') = ''
            ) THEN 'permanent'
        ELSE 'eligible'
    END AS verdict
FROM (
    SELECT failed.* FROM entitlement.outbox_events failed
    WHERE failed.status = 'FAILED'
      AND (CAST(%(named)s AS uuid[]) IS NULL OR failed.event_id = ANY (%(named)s))
      AND NOT EXISTS (
          SELECT FROM runbook.redriven r
          WHERE r.store = 'outbox' AND r.event_id = failed.event_id AND r.decision = 'discard'
      )
    -- FAILED rows have no retry time, so this is the index's own order.
    ORDER BY failed.next_retry_at, failed.created_at
    LIMIT %(most)s
) o
ORDER BY o.created_at, o.event_id
