-- Past traffic, one event per slot of 1 / rate seconds, written into every table that it has left rows in.
-- Every hop agrees with the next. The seed is set before (setseed): the same draws come in the same order.
WITH drawn AS MATERIALIZED (
    SELECT
        n,
        %(start)s + (n + random()) / %(rate)s AS t,
        'user-' || lpad(CAST(floor(random() * %(users)s) AS text), 4, '0') AS user_id,
        (%(skus)s::text[])[1 + CAST(floor(random() * cardinality(%(skus)s::text[])) AS int)] AS stock_keeping_unit,
        random() AS after_publish, random() AS trouble, random() AS twice,
        0.5 + random() AS first_jitter, 0.5 + random() AS second_jitter,
        CAST(md5('event ' || %(seed)s || n) AS uuid) AS event_id,
        CAST(md5('key ' || %(seed)s || n) AS uuid) AS request_id,
        'purchase-' || CAST(md5('purchase ' || %(seed)s || n) AS uuid) AS source_id
    FROM generate_series(0, %(n)s - 1) AS n
), flow AS (
    -- Both workers poll once a second, each at its own moment of it; the relay publishes one by one.
    SELECT
        drawn.*, published,
        published + 0.004 * row_number() OVER (PARTITION BY published ORDER BY n) + 0.002 * after_publish AS processed,
        row_number() OVER owned - 1 AS version,
        lag(t) OVER owned AS previous,
        lead(t) OVER owned IS NULL AS newest,
        CASE WHEN t >= %(now)s - %(standstill)s THEN %(stopped)s ELSE '' END AS stopped
    FROM drawn, LATERAL (SELECT ceil(t - %(relay_phase)s) + %(relay_phase)s AS published) AS relay
    WINDOW owned AS (PARTITION BY user_id, stock_keeping_unit ORDER BY n)
), event AS MATERIALIZED (
    SELECT
        flow.*, granting, event_type, source, failures, to_timestamp(t) AS at,
        CASE failures WHEN 0 THEN sent WHEN 1 THEN sent_once_more ELSE sent_again END AS sent_at,
        jsonb_build_object(
            'event_id', event_id, 'event_type', event_type,
            'occurred_at', to_char(to_timestamp(t) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'user_id', user_id, 'stock_keeping_unit', stock_keeping_unit,
            'source', source, 'source_id', source_id, 'version', version, 'trace_id', md5('trace ' || %(seed)s || n)
        ) AS payload
    FROM flow,
        LATERAL (SELECT version %% 2 = 0 AS granting) AS kind,
        LATERAL (
            SELECT
                CASE WHEN granting THEN 'EntitlementGranted' ELSE 'EntitlementRevoked' END AS event_type,
                CASE WHEN granting THEN 'purchase' ELSE 'refund' END AS source,
                CASE WHEN trouble >= 0.004 OR t >= %(now)s - 60 THEN 0 WHEN twice < 0.25 THEN 2 ELSE 1 END AS failures
        ) AS words,
        LATERAL (SELECT ceil(processed - %(worker_phase)s) + %(worker_phase)s AS sent) AS try,
        LATERAL (
            SELECT ceil(sent + greatest(1, first_jitter) - %(worker_phase)s) + %(worker_phase)s AS sent_once_more
        ) AS second_try,
        LATERAL (
            SELECT ceil(sent_once_more + 2 * second_jitter - %(worker_phase)s) + %(worker_phase)s AS sent_again
        ) AS third_try
    ORDER BY n
), audit AS (
    INSERT INTO entitlement.entitlement_audit
        (audit_id, occurred_at, user_id, stock_keeping_unit, action, source, source_id, request_id, detail)
    SELECT
        CAST(md5('audit ' || %(seed)s || n) AS uuid), at, user_id, stock_keeping_unit,
        CASE WHEN granting THEN 'GRANT' ELSE 'REVOKE' END, source, source_id, request_id,
        jsonb_build_object(
            'user_id', user_id, 'stock_keeping_unit', stock_keeping_unit, 'reason', source, 'purchase_id', source_id
        )
    FROM event
), outbox AS (
    INSERT INTO entitlement.outbox_events
        (event_id, event_type, aggregate_key, payload, status, created_at, published_at)
    SELECT
        event_id, event_type, user_id || ':' || stock_keeping_unit, payload,
        CASE stopped WHEN 'relay' THEN 'PENDING' ELSE 'PUBLISHED' END, at,
        CASE stopped WHEN 'relay' THEN NULL ELSE to_timestamp(published) END
    FROM event
    WHERE t > %(now)s - %(published_ttl)s
), processed AS (
    INSERT INTO notification.processed_events (event_id, processed_at)
    SELECT event_id, to_timestamp(processed) FROM event WHERE stopped NOT IN ('relay', 'subscriber')
), notified AS (
    INSERT INTO notification.notifications
        (notification_id, event_id, user_id, type, occurred_at, payload_json, status, attempt_count, next_retry_at,
         created_at, sent_at)
    SELECT
        CAST(md5('notification ' || %(seed)s || n) AS uuid), event_id, user_id, event_type, at, payload,
        CASE stopped WHEN 'worker' THEN 'PENDING' ELSE 'SENT' END,
        CASE stopped WHEN 'worker' THEN 0 ELSE failures END,
        CASE stopped WHEN 'worker' THEN to_timestamp(processed) END,
        to_timestamp(processed),
        CASE stopped WHEN 'worker' THEN NULL ELSE to_timestamp(sent_at) END
    FROM event
    WHERE stopped NOT IN ('relay', 'subscriber')
)
INSERT INTO entitlement.entitlements
    (user_id, stock_keeping_unit, status, granted_at, revoked_at, source, source_id, version, updated_at)
SELECT
    user_id, stock_keeping_unit, CASE WHEN granting THEN 'ACTIVE' ELSE 'REVOKED' END,
    to_timestamp(CASE WHEN granting THEN t ELSE previous END), CASE WHEN granting THEN NULL ELSE at END,
    source, source_id, version, at
FROM event
WHERE newest
