-- question: who has more notifications in the window (of the last 20,000, waiting events included) than changes?
-- index: notifications_retention_*_idx, outbox_pick_idx, notifications_user_idx, a range of the audit's heap, entitlements_pkey, outbox_events_pkey, processed_events_pkey
-- cost: index
-- answers: window
WITH recent AS MATERIALIZED (
    SELECT event_id, user_id, status, occurred_at, created_at,
        payload ->> 'stock_keeping_unit' AS item,
        coalesce(CAST(substring(payload ->> 'version' FROM '^[0-9]{1,18}$') AS bigint), 0) AS version
    FROM (
        SELECT event_id, user_id, status, occurred_at, created_at, payload_json AS payload
        FROM notification.notifications
        WHERE status IN ('SENT', 'FAILED') AND type <> 'MatchFound'
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
        UNION ALL
        SELECT event_id, user_id, status, occurred_at, created_at, payload_json
        FROM notification.notifications
        WHERE status IN ('PENDING', 'PROCESSING') AND type <> 'MatchFound'
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
        UNION ALL
        -- What is not published yet will be notified.
        SELECT event_id, payload ->> 'user_id', status, created_at, created_at, payload
        FROM entitlement.outbox_events
        WHERE status IN ('PENDING', 'IN_FLIGHT')
          AND created_at >= CAST(:since AS timestamptz) AND created_at <= CAST(:as_of AS timestamptz)
    ) created
    -- Published events are removed after 24 h, so the outbox still has those of every later notification.
    WHERE payload ? 'stock_keeping_unit' AND created_at >= now() - interval '23 hours 59 minutes'
    ORDER BY created_at DESC
    LIMIT 20000
), edge AS MATERIALIZED (
    SELECT min(created_at) AS begins FROM recent
), late AS MATERIALIZED (
    SELECT user_id, item, min(occurred_at) AS occurred_at
    FROM recent
    WHERE occurred_at < (SELECT begins FROM edge)
    GROUP BY user_id, item
    LIMIT 500
), earlier AS MATERIALIZED (
    -- Of a change before the window, the first notification may be before it too.
    SELECT n.event_id, l.user_id, n.status, n.occurred_at, n.created_at, l.item, n.version
    FROM late l
    CROSS JOIN LATERAL (
        SELECT event_id, status, occurred_at, created_at, payload_json ->> 'stock_keeping_unit' AS item,
            coalesce(CAST(substring(payload_json ->> 'version' FROM '^[0-9]{1,18}$') AS bigint), 0) AS version
        FROM notification.notifications f
        WHERE f.user_id = l.user_id AND f.type <> 'MatchFound'
          AND f.created_at >= l.occurred_at - interval '5 seconds' AND f.created_at < (SELECT begins FROM edge)
        ORDER BY f.created_at
        LIMIT 100
    ) n
    WHERE n.item = l.item
), events AS (
    -- A second notification of one event is a duplicate of another kind.
    SELECT DISTINCT ON (event_id) *
    FROM (SELECT * FROM recent UNION ALL SELECT * FROM earlier) every_one
    ORDER BY event_id, created_at
), notified AS MATERIALIZED (
    -- What failed reached nobody: an event that replaces it is none too many.
    SELECT * FROM (
        SELECT *, bool_or(status <> 'FAILED') OVER (PARTITION BY user_id, item, version) AS reached FROM events
    ) of_a_change
    WHERE status <> 'FAILED' OR NOT reached
), groups AS MATERIALIZED (
    SELECT user_id, item, count(*) AS notifications,
        least(min(occurred_at), (SELECT begins FROM edge)) - interval '1 minute' AS since
    FROM notified
    GROUP BY user_id, item
), audited AS MATERIALIZED (
    -- Rows are only ever appended: the last 2,000 pages.
    SELECT user_id, stock_keeping_unit AS item, occurred_at
    FROM entitlement.entitlement_audit
    WHERE ctid >= CAST((
        SELECT format('(%s,0)', greatest(
            pg_relation_size('entitlement.entitlement_audit') / CAST(current_setting('block_size') AS bigint) - 2000,
            0))
        ) AS tid)
      AND occurred_at >= (SELECT min(since) FROM groups)
), unaudited AS MATERIALIZED (
    SELECT g.user_id, g.item, g.notifications, count(a.occurred_at) AS changes
    FROM groups g
    LEFT JOIN audited a ON a.user_id = g.user_id AND a.item = g.item AND a.occurred_at >= g.since
    GROUP BY g.user_id, g.item, g.notifications
    HAVING g.notifications > count(a.occurred_at)
), versioned AS MATERIALIZED (
    -- A change that the audit lacks shows as a version of the right, written at the time of its event or since.
    SELECT u.user_id, u.item, greatest(u.changes, count(DISTINCT n.version) FILTER (
        WHERE n.version <= r.version AND n.occurred_at <= r.updated_at + interval '1 minute'
    )) AS changes
    FROM unaudited u
    JOIN notified n ON n.user_id = u.user_id AND n.item = u.item
    LEFT JOIN LATERAL (
        SELECT version, updated_at FROM entitlement.entitlements e
        WHERE e.user_id = u.user_id AND e.stock_keeping_unit = u.item
        LIMIT 1
    ) r ON true
    GROUP BY u.user_id, u.item, u.changes
), traced AS MATERIALIZED (
    SELECT n.*, v.changes,
        (SELECT true FROM entitlement.outbox_events o WHERE o.event_id = n.event_id LIMIT 1) IS NOT NULL AS in_outbox,
        (SELECT true FROM notification.processed_events p WHERE p.event_id = n.event_id LIMIT 1) IS NOT NULL
            AS registered
    FROM versioned v
    JOIN notified n ON n.user_id = v.user_id AND n.item = v.item
), repeated AS (
    SELECT *, row_number() OVER (
        PARTITION BY user_id, item, version ORDER BY in_outbox DESC, created_at, event_id
    ) AS of_version
    FROM traced
), ranked AS (
    -- The first of each version are the changes' own.
    SELECT *, row_number() OVER (
        PARTITION BY user_id, item ORDER BY of_version, in_outbox DESC, created_at, event_id
    ) AS nth
    FROM repeated
)
-- A row for all users of a kind, then one for each user and item.
SELECT in_outbox, user_id, item AS stock_keeping_unit,
    CASE WHEN GROUPING(user_id) = 0 THEN max(changes) END AS changes, count(*) AS n,
    count(DISTINCT user_id) AS users, count(*) FILTER (WHERE status = 'SENT') AS sent,
    count(*) FILTER (WHERE registered) AS registered, min(created_at) AS first, max(created_at) AS last,
    (array_agg(event_id ORDER BY created_at DESC))[1] AS event_id
FROM ranked
WHERE nth > changes AND created_at >= (SELECT begins FROM edge)
GROUP BY GROUPING SETS ((in_outbox), (in_outbox, user_id, item))
ORDER BY user_id IS NOT NULL, n DESC
LIMIT :max_rows;
