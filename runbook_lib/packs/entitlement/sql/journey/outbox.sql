-- question: what does the outbox have of these events?
-- index: outbox_events_pkey
-- cost: index
-- answers: window
SELECT event_id, event_type, coalesce(payload ->> 'user_id', regexp_replace(aggregate_key, ':[^:]*$', '')) AS user_id,
    coalesce(payload ->> 'stock_keeping_unit', substring(aggregate_key FROM '^.*:(.*)$')) AS stock_keeping_unit,
    payload ->> 'trace_id' AS trace_id, status, attempt_count, next_retry_at, created_at, published_at,
    locked_by, locked_at, lease_until, last_error,
    (SELECT count(*) FROM unnest(CAST(:fields AS text[])) AS field WHERE coalesce(payload ->> field, '') = '') AS lacks
FROM entitlement.outbox_events
WHERE event_id = ANY (CAST(:ids AS uuid[]))
LIMIT :max_rows;
