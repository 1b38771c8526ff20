-- question: how many events of the window are in each state, and which are those that do not simply go on?
-- index: outbox_published_at_idx, outbox_pick_idx, processed_events_processed_at_idx, processed_events_pkey, notifications_retention_*_idx, notifications_user_idx, notification_dlq_event_idx, notification_dlq_notification_id_uniq, a range of the heap of entitlement_audit
-- cost: index
-- answers: window
WITH head AS (
    SELECT greatest(pg_relation_size('entitlement.entitlement_audit')
        / CAST(current_setting('block_size') AS bigint) - 2000, 0) AS page
), changes AS MATERIALIZED (
    -- There is no index on the time. Nearly all of the newest rows are in the newest pages, or partitions.
    SELECT audit_id, user_id, stock_keeping_unit, occurred_at FROM entitlement.entitlement_audit
    WHERE ctid >= CAST((SELECT format('(%s,0)', page) FROM head) AS tid)
      AND occurred_at > CAST(:since AS timestamptz) AND occurred_at <= CAST(:as_of AS timestamptz)
), boxed AS MATERIALIZED (
    SELECT event_id, aggregate_key, payload ->> 'user_id' AS user_id, status, created_at, published_at,
        CAST(NULL AS timestamptz) AS next_retry_at, CAST(NULL AS timestamptz) AS lease_until
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at > CAST(:since AS timestamptz) - interval '1 minute'
      AND created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    UNION ALL
    SELECT event_id, aggregate_key, payload ->> 'user_id', status, created_at, published_at, next_retry_at, lease_until
    FROM entitlement.outbox_events
    WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
      AND created_at > CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
), near AS MATERIALIZED (
    -- Nearly all are registered soon; the rest is looked up one by one.
    SELECT event_id, processed_at FROM notification.processed_events
    WHERE processed_at > CAST(:since AS timestamptz) - interval '1 minute'
      AND processed_at <= CAST(:as_of AS timestamptz) + interval '10 minutes'
), queued AS MATERIALIZED (
    SELECT notification_id, event_id, user_id, type, occurred_at, status, next_retry_at, lease_until,
        payload_json ->> 'stock_keeping_unit' AS sku
    FROM notification.notifications
    WHERE status IN ('SENT', 'FAILED') AND created_at > CAST(:since AS timestamptz) - interval '1 minute'
      AND created_at <= CAST(:as_of AS timestamptz) + interval '10 minutes'
    UNION ALL
    SELECT notification_id, event_id, user_id, type, occurred_at, status, next_retry_at, lease_until,
        payload_json ->> 'stock_keeping_unit'
    FROM notification.notifications
    WHERE status IN ('PENDING', 'PROCESSING') AND created_at > CAST(:since AS timestamptz) - interval '1 minute'
      AND created_at <= CAST(:as_of AS timestamptz) + interval '10 minutes'
), late AS MATERIALIZED (
    SELECT b.event_id, b.user_id, (
        SELECT p.processed_at FROM notification.processed_events p WHERE p.event_id = b.event_id LIMIT 1
    ) AS processed_at
    FROM boxed b LEFT JOIN near n ON n.event_id = b.event_id
    WHERE n.event_id IS NULL
), lone AS MATERIALIZED (
    -- Changes whose event is not in the outbox: a notification of the same user, item and instant is theirs.
    SELECT c.audit_id, c.occurred_at, q.event_id
    FROM changes c
    LEFT JOIN boxed b ON b.aggregate_key = c.user_id || ':' || c.stock_keeping_unit AND b.created_at = c.occurred_at
    LEFT JOIN queued q ON q.user_id = c.user_id AND q.occurred_at = c.occurred_at AND q.sku = c.stock_keeping_unit
    WHERE b.event_id IS NULL
), other AS MATERIALIZED (
    -- Registered in the window, and of no change: matches, and what did not come through the outbox.
    SELECT n.event_id, n.processed_at FROM (SELECT DISTINCT event_id, processed_at FROM near) n
    LEFT JOIN boxed b ON b.event_id = n.event_id
    LEFT JOIN lone l ON l.event_id = n.event_id
    WHERE n.processed_at > CAST(:since AS timestamptz) AND n.processed_at <= CAST(:as_of AS timestamptz)
      AND b.event_id IS NULL AND l.event_id IS NULL
      AND (SELECT true FROM entitlement.outbox_events o WHERE o.event_id = n.event_id LIMIT 1) IS NULL
), cohort AS MATERIALIZED (
    SELECT 'change' AS origin, b.event_id, CAST(NULL AS uuid) AS audit_id, b.created_at, b.published_at, b.status AS outbox,
        CASE WHEN b.status = 'IN_FLIGHT' AND b.lease_until > now() THEN 'held'
            WHEN b.status = 'PENDING' AND b.next_retry_at > now() THEN 'retry' ELSE 'due' END AS outbox_wait,
        -- A new row may fill a gap in an old page: only who has read all of them knows that there is none.
        CASE WHEN c.audit_id IS NOT NULL THEN true WHEN (SELECT page = 0 FROM head) THEN false END AS audit
    FROM boxed b
    LEFT JOIN changes c ON b.aggregate_key = c.user_id || ':' || c.stock_keeping_unit AND b.created_at = c.occurred_at
    UNION ALL
    SELECT 'change', event_id, audit_id, occurred_at, NULL, NULL, 'due', true FROM lone
    UNION ALL
    -- Published events are removed after 24 h: of an older one the outbox can have no row.
    SELECT 'other', event_id, NULL, processed_at, NULL,
        CASE WHEN EXISTS (
            SELECT FROM queued q WHERE q.event_id = other.event_id AND q.occurred_at < now() - interval '23 hours'
        ) THEN 'PUBLISHED' END, 'due', NULL
    FROM other
), registered AS MATERIALIZED (
    SELECT DISTINCT event_id FROM near
    UNION
    SELECT event_id FROM late WHERE processed_at IS NOT NULL
), notified AS MATERIALIZED (
    SELECT * FROM queued
    UNION
    SELECT n.notification_id, n.event_id, n.user_id, n.type, n.occurred_at, n.status, n.next_retry_at, n.lease_until, NULL
    FROM late l JOIN notification.notifications n ON n.user_id = l.user_id AND n.event_id = l.event_id
    WHERE l.processed_at > CAST(:as_of AS timestamptz) + interval '10 minutes'
    UNION
    -- A dead letter that is left of a notification.
    SELECT d.notification_id, d.event_id, l.user_id, NULL, NULL, 'FAILED', NULL, NULL, NULL
    FROM late l JOIN notification.notification_dlq d ON d.event_id = l.event_id
    WHERE (SELECT true FROM notification.notifications n WHERE n.notification_id = d.notification_id) IS NULL
), furthest AS MATERIALIZED (
    SELECT event_id, count(*) AS copies, bool_or(type = 'MatchFound') AS match,
        (array_agg(notification_id ORDER BY array_position(ARRAY['SENT', 'PROCESSING', 'PENDING', 'FAILED'], status)))[1]
            AS notification_id,
        (array_agg(status ORDER BY array_position(ARRAY['SENT', 'PROCESSING', 'PENDING', 'FAILED'], status)))[1] AS status,
        min(CASE WHEN status = 'PROCESSING' AND lease_until > now() THEN 'held'
            WHEN status = 'PENDING' AND next_retry_at > now() THEN 'retry' ELSE 'due' END) AS wait
    FROM notified GROUP BY event_id
), states AS MATERIALIZED (
    SELECT c.*, CASE WHEN f.match THEN 'match' ELSE c.origin END AS from_, r.event_id IS NOT NULL AS processed,
        f.status AS notification, f.wait AS notification_wait, coalesce(f.copies > 1, false) AS doubled,
        -- With EXISTS the planner may read the whole table once instead of one key per row.
        CASE WHEN f.status = 'FAILED' THEN (
            SELECT true FROM notification.notification_dlq d WHERE d.notification_id = f.notification_id LIMIT 1
        ) IS NOT NULL END AS letter
    FROM cohort c
    LEFT JOIN registered r ON r.event_id = c.event_id
    LEFT JOIN furthest f ON f.event_id = c.event_id
), named AS (
    SELECT *, notification IS NULL AND (processed OR coalesce(outbox, 'PUBLISHED') IN ('PUBLISHED', 'FAILED'))
        OR notification = 'FAILED' OR doubled OR NOT coalesce(audit, true) OR outbox IS NULL AND from_ <> 'match'
        OR NOT processed AND notification IS NOT NULL AS named
    FROM states
)
SELECT from_ AS origin, audit, outbox, outbox_wait, processed, notification, notification_wait, letter, doubled,
    count(*) AS n,
    string_agg(CAST(coalesce(event_id, audit_id) AS text), ' ' ORDER BY created_at) FILTER (WHERE named) AS ids,
    string_agg(extract(epoch FROM created_at) || ' ' || extract(epoch FROM published_at), ' ' ORDER BY created_at)
        FILTER (WHERE named AND outbox = 'PUBLISHED' AND NOT processed AND notification IS NULL) AS times
FROM named
GROUP BY from_, audit, outbox, outbox_wait, processed, notification, notification_wait, letter, doubled
ORDER BY n DESC
LIMIT :max_rows;
