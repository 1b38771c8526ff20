-- question: which events did the relay give up in the window, why, and what do their payloads lack (a sample spread over all)?
-- index: outbox_pick_idx, outbox_events_pkey
-- cost: index
-- answers: window
WITH newest AS MATERIALIZED (
    -- When it failed is kept nowhere but in the commit time. Else: at once, or after ten tries, which take about 243 s.
    SELECT event_id, committed_at IS NOT NULL AS exact,
        coalesce(committed_at, least(CAST(:as_of AS timestamptz), created_at
            + CASE WHEN last_error LIKE '%payload parse failure%' THEN interval '0' ELSE interval '243 seconds' END)) AS failed_at
    FROM (
        SELECT event_id, created_at, last_error,
            CASE WHEN current_setting('track_commit_timestamp') = 'on' THEN pg_xact_commit_timestamp(xmin) END AS committed_at
        FROM entitlement.outbox_events
        WHERE status = 'FAILED'
        ORDER BY next_retry_at DESC, created_at DESC
        LIMIT 20000
    ) given_up
), failed AS MATERIALIZED (
    SELECT *, row_number() OVER (ORDER BY failed_at DESC) AS nth, count(*) OVER () AS total
    FROM newest
    WHERE failed_at > CAST(:since AS timestamptz) AND failed_at <= CAST(:as_of AS timestamptz)
), sample AS MATERIALIZED (
    SELECT event_id, failed_at, exact, total FROM failed
    WHERE (nth - 1) % CAST(ceil(total / (:max_rows - 1.0)) AS bigint) = 0
    LIMIT :max_rows
)
SELECT o.event_id, s.failed_at, s.exact, left(o.last_error, 300) AS last_error,
    substring(o.event_type FROM '^[A-Za-z0-9_.-]{1,40}$') AS event_type,
    substring(o.payload->>'source' FROM '^[A-Za-z0-9_.-]{1,40}$') AS source,
    -- Of the payload only which fields it has, and of what type.
    CASE WHEN jsonb_typeof(o.payload) <> 'object' THEN 'payload:' || jsonb_typeof(o.payload) ELSE (
        SELECT string_agg(name || ':' || CASE
            WHEN o.payload->>name = '' THEN 'empty'
            WHEN name = 'event_id' AND o.payload->>name !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN 'malformed'
            WHEN name = 'occurred_at' AND o.payload->>name !~ '^\d{4}-\d\d-\d\dT\d\d:\d\d.*(Z|[+-]\d\d:\d\d)$' THEN 'malformed'
            ELSE coalesce(jsonb_typeof(o.payload->name), 'absent') END, ' ' ORDER BY n)
        FROM unnest(CAST(:fields AS text[])) WITH ORDINALITY AS field (name, n)
    ) END AS shape,
    s.total
FROM sample s
JOIN entitlement.outbox_events o ON o.event_id = s.event_id
ORDER BY s.failed_at DESC
LIMIT :max_rows;
