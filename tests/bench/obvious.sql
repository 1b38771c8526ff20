-- What a person would type who knows the columns, and not the indexes: "not sent yet", a column compared with a time,
-- a count with a FILTER for each case. Each query follows the name of the question that it stands beside.

-- question: notifications/activity
SELECT max(locked_at), max(sent_at), count(*) FILTER (WHERE sent_at > now() - interval '1 minute'),
    count(*) FILTER (WHERE created_at > now() - interval '1 minute'), array_agg(DISTINCT locked_by)
FROM notification.notifications

-- question: notifications/ages
SELECT date_trunc('minute', now() - created_at), count(*) FROM notification.notifications
WHERE status NOT IN ('SENT', 'FAILED') GROUP BY 1 ORDER BY 1

-- question: notifications/attempts
SELECT attempt_count, count(*) FROM notification.notifications
WHERE status NOT IN ('SENT', 'FAILED') GROUP BY 1 ORDER BY 1

-- question: notifications/backlog
SELECT count(*) FILTER (WHERE status = 'PENDING' AND coalesce(next_retry_at, created_at) <= now()),
    min(created_at) FILTER (WHERE status = 'PENDING' AND coalesce(next_retry_at, created_at) <= now()),
    count(*) FILTER (WHERE status = 'PENDING' AND next_retry_at > now()),
    count(*) FILTER (WHERE status = 'PROCESSING' AND lease_until > now()),
    count(*) FILTER (WHERE status = 'PROCESSING' AND coalesce(lease_until, now()) <= now()),
    count(*) FILTER (WHERE status = 'PENDING' AND next_retry_at < now() - interval '10 minutes')
FROM notification.notifications

-- question: notifications/batches
SELECT sent_at, count(*) FROM notification.notifications
WHERE sent_at > now() - interval '1 hour' GROUP BY 1 ORDER BY 1 DESC LIMIT 500

-- question: notifications/by_status
SELECT status, count(*) FROM notification.notifications GROUP BY status ORDER BY status

-- question: notifications/clock
SELECT max(locked_at) - now(), max(lease_until) - now(), max(sent_at) - now(), min(sent_at - created_at)
FROM notification.notifications

-- question: notifications/failed_tries
SELECT attempt_count, count(*) FILTER (WHERE next_retry_at > now()) FROM notification.notifications
WHERE attempt_count > 0 AND sent_at IS NULL GROUP BY 1

-- question: notifications/held
SELECT notification_id, locked_by, locked_at, lease_until, attempt_count FROM notification.notifications
WHERE locked_by IS NOT NULL ORDER BY lease_until DESC

-- question: notifications/holders
SELECT locked_by, count(*), count(*) FILTER (WHERE lease_until <= now()), max(locked_at), max(lease_until)
FROM notification.notifications WHERE locked_by IS NOT NULL GROUP BY 1 ORDER BY 2 DESC

-- question: notifications/leases
SELECT width_bucket(extract(epoch FROM lease_until - now()), -120, 120, 48), count(*)
FROM notification.notifications WHERE lease_until IS NOT NULL GROUP BY 1 ORDER BY 1

-- question: notifications/registered
SELECT max(created_at), count(*) FILTER (WHERE created_at > now() - interval '1 minute')
FROM notification.notifications WHERE type <> 'MatchFound'

-- question: notifications/per_minute
SELECT date_trunc('minute', greatest(created_at, sent_at)), count(*), count(sent_at),
    count(*) FILTER (WHERE sent_at - occurred_at >= interval '30 seconds')
FROM notification.notifications
WHERE created_at >= CAST(:since AS timestamptz) OR sent_at >= CAST(:since AS timestamptz) GROUP BY 1

-- question: outbox/ages
SELECT max(created_at),
    percentile_cont(0.95) WITHIN GROUP (ORDER BY now() - created_at) FILTER (WHERE published_at IS NULL)
FROM entitlement.outbox_events

-- question: outbox/backlog
SELECT count(*) FILTER (WHERE status = 'PENDING' AND coalesce(next_retry_at, created_at) <= now()),
    min(created_at) FILTER (WHERE published_at IS NULL),
    count(*) FILTER (WHERE status = 'PENDING' AND next_retry_at > now()),
    count(*) FILTER (WHERE status = 'IN_FLIGHT'), count(*) FILTER (WHERE status = 'FAILED'),
    max(attempt_count), max(published_at),
    count(*) FILTER (WHERE published_at > now() - interval '1 minute'),
    count(*) FILTER (WHERE created_at > now() - interval '1 minute')
FROM entitlement.outbox_events

-- question: outbox/delay
SELECT count(*), percentile_cont(0.95) WITHIN GROUP (ORDER BY published_at - created_at)
FROM entitlement.outbox_events WHERE published_at >= CAST(:since AS timestamptz)

-- question: outbox/errors
SELECT last_error, count(*), max(created_at) FROM entitlement.outbox_events
WHERE last_error IS NOT NULL GROUP BY 1 ORDER BY 2 DESC

-- question: outbox/failed_tries
SELECT attempt_count, count(*) FILTER (WHERE next_retry_at > now()) FROM entitlement.outbox_events
WHERE attempt_count > 0 AND published_at IS NULL GROUP BY 1

-- question: outbox/holders
SELECT locked_by, count(*), max(locked_at) FROM entitlement.outbox_events
WHERE locked_by IS NOT NULL GROUP BY 1

-- question: outbox/per_minute
SELECT date_trunc('minute', greatest(created_at, published_at)), count(*), count(published_at)
FROM entitlement.outbox_events
WHERE created_at >= CAST(:since AS timestamptz) OR published_at >= CAST(:since AS timestamptz) GROUP BY 1

-- question: outbox/unprocessed
SELECT o.event_id, o.event_type, o.created_at, o.published_at
FROM entitlement.outbox_events o LEFT JOIN notification.processed_events p ON p.event_id = o.event_id
WHERE o.published_at BETWEEN CAST(:since AS timestamptz) AND now() - interval '60 seconds'
  AND p.event_id IS NULL
ORDER BY o.published_at DESC LIMIT 500

-- question: consistency/audit_without_event_tail
SELECT a.* FROM entitlement.entitlement_audit a
LEFT JOIN entitlement.outbox_events o
    ON o.aggregate_key = a.user_id || ':' || a.stock_keeping_unit AND o.created_at = a.occurred_at
WHERE a.occurred_at >= CAST(:since AS timestamptz) AND o.event_id IS NULL

-- question: consistency/duplicates
SELECT event_id, count(*) FROM notification.notifications
WHERE created_at >= CAST(:since AS timestamptz) GROUP BY event_id HAVING count(*) > 1

-- question: consistency/failed_without_dead_letter
SELECT n.notification_id, n.event_id, n.created_at FROM notification.notifications n
LEFT JOIN notification.notification_dlq d ON d.notification_id = n.notification_id
WHERE n.attempt_count >= 10 AND d.dlq_id IS NULL

-- question: consistency/half_processed
SELECT p.event_id, p.processed_at FROM notification.processed_events p
LEFT JOIN notification.notifications n ON n.event_id = p.event_id
WHERE p.processed_at >= CAST(:since AS timestamptz) AND n.event_id IS NULL

-- question: consistency/locks
SELECT notification_id, status, locked_by, locked_at, lease_until FROM notification.notifications
WHERE (status = 'PROCESSING') <> (locked_by IS NOT NULL)
   OR (status = 'PROCESSING') <> (lease_until IS NOT NULL)
   OR (status = 'SENT') <> (sent_at IS NOT NULL)

-- question: consistency/sent_dirty_rows
SELECT notification_id, locked_by, lease_until, next_retry_at FROM notification.notifications
WHERE status = 'SENT' AND (locked_by IS NOT NULL OR next_retry_at IS NOT NULL)

-- question: database/blocked
SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE wait_event_type = 'Lock'

-- question: database/blockers
SELECT b.pid, b.state, b.query FROM pg_stat_activity w
JOIN pg_stat_activity b ON b.pid = ANY (pg_blocking_pids(w.pid))

-- question: database/connections
SELECT count(*) FROM pg_stat_activity

-- question: database/long_transactions
SELECT pid, application_name, state, now() - xact_start, query FROM pg_stat_activity
WHERE now() - xact_start > interval '5 seconds' ORDER BY xact_start

-- question: database/sessions
SELECT application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2

-- question: account/states
SELECT o.status, p.event_id IS NOT NULL, n.status, count(*) FROM entitlement.entitlement_audit a
LEFT JOIN entitlement.outbox_events o
    ON o.aggregate_key = a.user_id || ':' || a.stock_keeping_unit AND o.created_at = a.occurred_at
LEFT JOIN notification.processed_events p ON p.event_id = o.event_id
LEFT JOIN notification.notifications n ON n.event_id = o.event_id
WHERE a.occurred_at >= CAST(:since AS timestamptz) GROUP BY 1, 2, 3

-- question: journey/audit
SELECT * FROM entitlement.entitlement_audit WHERE occurred_at = ANY (CAST(:instants AS timestamptz[]))

-- question: journey/by_user
SELECT event_id, occurred_at FROM notification.notifications
WHERE payload_json ->> 'user_id' = :typed_user AND occurred_at >= CAST(:since AS timestamptz)

-- question: journey/notifications
SELECT * FROM notification.notifications WHERE event_id = ANY (CAST(:ids AS uuid[]))

-- question: journey/users
SELECT DISTINCT user_id FROM notification.notifications WHERE created_at >= CAST(:since AS timestamptz)

-- question: past/broker
SELECT date_trunc('minute', at), sum(step), sum(sum(step)) OVER (ORDER BY date_trunc('minute', at)) FROM (
    SELECT published_at AS at, 1 AS step FROM entitlement.outbox_events WHERE published_at IS NOT NULL
    UNION ALL SELECT processed_at, -1 FROM notification.processed_events) steps
GROUP BY 1 ORDER BY 1

-- question: past/notifications
SELECT date_trunc('minute', at), sum(step), sum(sum(step)) OVER (ORDER BY date_trunc('minute', at)) FROM (
    SELECT created_at AS at, 1 AS step FROM notification.notifications
    UNION ALL SELECT sent_at, -1 FROM notification.notifications WHERE sent_at IS NOT NULL) steps
GROUP BY 1 ORDER BY 1

-- question: past/outbox
SELECT date_trunc('minute', at), sum(step), sum(sum(step)) OVER (ORDER BY date_trunc('minute', at)) FROM (
    SELECT created_at AS at, 1 AS step FROM entitlement.outbox_events
    UNION ALL SELECT published_at, -1 FROM entitlement.outbox_events WHERE published_at IS NOT NULL) steps
GROUP BY 1 ORDER BY 1

-- question: processed/activity
SELECT max(processed_at), count(*) FILTER (WHERE processed_at > now() - interval '1 minute')
FROM notification.processed_events

-- question: processed/clock
SELECT max(processed_at) - now(),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY pg_xact_commit_timestamp(xmin) - processed_at)
FROM notification.processed_events WHERE processed_at > now() - interval '1 hour'

-- question: recovery/notification_flows
SELECT date_trunc('minute', greatest(created_at, sent_at)), count(*) FROM notification.notifications
WHERE created_at >= CAST(:since AS timestamptz) OR sent_at >= CAST(:since AS timestamptz) GROUP BY 1

-- question: recovery/outbox_flows
SELECT date_trunc('minute', greatest(created_at, published_at)), count(*) FROM entitlement.outbox_events
WHERE created_at >= CAST(:since AS timestamptz) OR published_at >= CAST(:since AS timestamptz) GROUP BY 1

-- question: sli/affected
SELECT count(*), count(DISTINCT user_id) FROM notification.notifications
WHERE sent_at IS NULL AND now() - created_at > interval '30 seconds'

-- question: sli/delivered
SELECT count(*), percentile_cont(0.95) WITHIN GROUP (ORDER BY sent_at - occurred_at)
FROM notification.notifications WHERE sent_at >= CAST(:since AS timestamptz)

-- question: sli/delivery_cohort
SELECT count(*), count(sent_at), percentile_cont(0.95) WITHIN GROUP (ORDER BY sent_at - occurred_at)
FROM notification.notifications
WHERE occurred_at >= CAST(:since AS timestamptz) AND occurred_at < CAST(:until AS timestamptz)

-- question: sli/outbox_cohort
SELECT count(*), count(published_at), percentile_cont(0.95) WITHIN GROUP (ORDER BY published_at - created_at)
FROM entitlement.outbox_events
WHERE created_at >= CAST(:since AS timestamptz) AND created_at < CAST(:as_of AS timestamptz)
