-- question: which notifications were given up in the window, with which error, and what do their payloads lack (a sample spread over all)?
-- index: scan of notification_dlq, which has no index on the time
-- cost: scan
-- answers: window
WITH letters AS MATERIALIZED (
    SELECT dlq_id, created_at, row_number() OVER (ORDER BY created_at DESC) AS nth, count(*) OVER () AS total
    FROM notification.notification_dlq
    WHERE created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
), sample AS MATERIALIZED (
    SELECT dlq_id, total FROM letters
    -- Every nth of them, so that as many as fit tell of the whole window.
    WHERE (nth - 1) % CAST(ceil(total / (:max_rows - 1.0)) AS bigint) = 0
    LIMIT :max_rows
)
SELECT d.event_id, d.created_at,
    -- A user's id has no business in the text; the exact one is known here.
    left(CASE WHEN length(d.payload_json->>'user_id') > 2
        THEN replace(d.error_message, d.payload_json->>'user_id', '<user>') ELSE d.error_message END, 300) AS error_message,
    d.payload_json->>'user_id' AS user_id,
    CASE WHEN d.payload_json ? 'match_id' THEN 'MatchFound'
        ELSE substring(d.payload_json->>'event_type' FROM '^[A-Za-z0-9_.-]{1,40}$') END AS event_type,
    substring(d.payload_json->>'source' FROM '^[A-Za-z0-9_.-]{1,40}$') AS source,
    -- Of the payload only which fields it has, and of what type. The payload of a match has none of them.
    CASE WHEN NOT d.payload_json ? 'match_id' THEN (
        SELECT string_agg(name || ':' || CASE WHEN d.payload_json->>name = '' THEN 'empty'
            ELSE coalesce(jsonb_typeof(d.payload_json->name), 'absent') END, ' ' ORDER BY n)
        FROM unnest(CAST(:fields AS text[])) WITH ORDINALITY AS field (name, n)
    ) END AS shape,
    s.total
FROM sample s
JOIN notification.notification_dlq d ON d.dlq_id = s.dlq_id
ORDER BY d.created_at DESC
LIMIT :max_rows;
