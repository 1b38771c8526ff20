"""What a person would type who knows the columns, and not the indexes.

That person writes what is meant: "not sent yet", a column compared with a time, a count with a FILTER for each case.
"""

from __future__ import annotations

#: Questions that are the obvious query themselves, and why there is no other.
ITSELF = {
    "notifications/count_by_status": "the runbook's own wording, behind the cost gate",
    "notifications/older_than_10min": "the runbook's own wording, behind the cost gate",
    "notifications/processing_oldest": "the runbook's own wording, behind the cost gate",
    "journey/by_trace": "no trace has an index, behind the cost gate",
    "consistency/sent_dirty": "the runbook's own wording, behind the cost gate",
    "consistency/unprocessed_day": "a whole day has no cheaper form, behind the cost gate",
    "consistency/audit_without_event_day": "the audit has no index on the time, behind the cost gate",
    "consistency/dead_letter_not_failed": "dead letters have no index on the time, behind the cost gate",
    "notifications/failed_per_minute": "dead letters have no index on the time, behind the cost gate",
    "database/row_locks": "reads no row while nobody holds a transaction's id, and so does the obvious query",
    "processed/nats_dlq": "dead letters have no index on the time, behind the cost gate",
    "processed/per_minute": "the index on processed_at serves the obvious query too",
}

_NOTIFICATIONS = {
    "activity": """
        SELECT max(locked_at), max(sent_at), count(*) FILTER (WHERE sent_at > now() - interval '1 minute'),
            count(*) FILTER (WHERE created_at > now() - interval '1 minute'), array_agg(DISTINCT locked_by)
        FROM notification.notifications""",
    "ages": """
        SELECT date_trunc('minute', now() - created_at), count(*) FROM notification.notifications
        WHERE status NOT IN ('SENT', 'FAILED') GROUP BY 1 ORDER BY 1""",
    "arrivals_per_minute": """
        SELECT date_trunc('minute', created_at), count(*) FROM notification.notifications
        WHERE created_at >= CAST(:since AS timestamptz) GROUP BY 1 ORDER BY 1 DESC""",
    "attempts": """
        SELECT attempt_count, count(*) FROM notification.notifications
        WHERE status NOT IN ('SENT', 'FAILED') GROUP BY 1 ORDER BY 1""",
    "backlog": """
        SELECT count(*) FILTER (WHERE status = 'PENDING' AND coalesce(next_retry_at, created_at) <= now()),
            min(created_at) FILTER (WHERE status = 'PENDING' AND coalesce(next_retry_at, created_at) <= now()),
            count(*) FILTER (WHERE status = 'PENDING' AND next_retry_at > now()),
            count(*) FILTER (WHERE status = 'PROCESSING' AND lease_until > now()),
            count(*) FILTER (WHERE status = 'PROCESSING' AND coalesce(lease_until, now()) <= now()),
            count(*) FILTER (WHERE status = 'PENDING' AND next_retry_at < now() - interval '10 minutes')
        FROM notification.notifications""",
    "batches": """
        SELECT sent_at, count(*) FROM notification.notifications
        WHERE sent_at > now() - interval '1 hour' GROUP BY 1 ORDER BY 1 DESC LIMIT 500""",
    "by_status": "SELECT status, count(*) FROM notification.notifications GROUP BY status ORDER BY status",
    "clock": """
        SELECT max(locked_at) - now(), max(lease_until) - now(), max(sent_at) - now(), min(sent_at - created_at)
        FROM notification.notifications""",
    "held": """
        SELECT notification_id, locked_by, locked_at, lease_until, attempt_count FROM notification.notifications
        WHERE locked_by IS NOT NULL ORDER BY lease_until DESC""",
    "holders": """
        SELECT locked_by, count(*), count(*) FILTER (WHERE lease_until <= now()), max(locked_at), max(lease_until)
        FROM notification.notifications WHERE locked_by IS NOT NULL GROUP BY 1 ORDER BY 2 DESC""",
    "leases": """
        SELECT width_bucket(extract(epoch FROM lease_until - now()), -120, 120, 48), count(*)
        FROM notification.notifications WHERE lease_until IS NOT NULL GROUP BY 1 ORDER BY 1""",
    "sent_per_minute": """
        SELECT date_trunc('minute', sent_at), count(*) FROM notification.notifications
        WHERE sent_at >= CAST(:since AS timestamptz) GROUP BY 1 ORDER BY 1 DESC""",
}

_OUTBOX = {
    "arrivals_per_minute": """
        SELECT date_trunc('minute', created_at), count(*) FROM entitlement.outbox_events
        WHERE created_at >= CAST(:since AS timestamptz) GROUP BY 1 ORDER BY 1 DESC""",
    "backlog": """
        SELECT count(*) FILTER (WHERE status = 'PENDING' AND coalesce(next_retry_at, created_at) <= now()),
            min(created_at) FILTER (WHERE published_at IS NULL),
            count(*) FILTER (WHERE status = 'PENDING' AND next_retry_at > now()),
            count(*) FILTER (WHERE status = 'IN_FLIGHT'), count(*) FILTER (WHERE status = 'FAILED'),
            max(attempt_count), max(published_at),
            count(*) FILTER (WHERE published_at > now() - interval '1 minute'),
            count(*) FILTER (WHERE created_at > now() - interval '1 minute')
        FROM entitlement.outbox_events""",
    "delay": """
        SELECT count(*), percentile_cont(0.95) WITHIN GROUP (ORDER BY published_at - created_at)
        FROM entitlement.outbox_events WHERE published_at >= CAST(:since AS timestamptz)""",
    "delay_per_minute": """
        SELECT date_trunc('minute', published_at), count(*),
            percentile_cont(0.95) WITHIN GROUP (ORDER BY published_at - created_at)
        FROM entitlement.outbox_events WHERE published_at >= CAST(:since AS timestamptz)
        GROUP BY 1 ORDER BY 1 DESC""",
    "errors": """
        SELECT last_error, count(*), max(created_at) FROM entitlement.outbox_events
        WHERE last_error IS NOT NULL GROUP BY 1 ORDER BY 2 DESC""",
    "holders": """
        SELECT locked_by, count(*), max(locked_at) FROM entitlement.outbox_events
        WHERE locked_by IS NOT NULL GROUP BY 1""",
    "published_per_minute": """
        SELECT date_trunc('minute', published_at), count(*) FROM entitlement.outbox_events
        WHERE published_at >= CAST(:since AS timestamptz) GROUP BY 1 ORDER BY 1 DESC""",
    "unprocessed": """
        SELECT o.event_id, o.event_type, o.created_at, o.published_at
        FROM entitlement.outbox_events o LEFT JOIN notification.processed_events p ON p.event_id = o.event_id
        WHERE o.published_at BETWEEN CAST(:since AS timestamptz) AND now() - interval '60 seconds'
          AND p.event_id IS NULL
        ORDER BY o.published_at DESC LIMIT 500""",
}

_OTHERS = {
    "consistency/audit_without_event_tail": """
        SELECT a.* FROM entitlement.entitlement_audit a
        LEFT JOIN entitlement.outbox_events o
            ON o.aggregate_key = a.user_id || ':' || a.stock_keeping_unit AND o.created_at = a.occurred_at
        WHERE a.occurred_at >= CAST(:since AS timestamptz) AND o.event_id IS NULL""",
    "consistency/duplicates": """
        SELECT event_id, count(*) FROM notification.notifications
        WHERE created_at >= CAST(:since AS timestamptz) GROUP BY event_id HAVING count(*) > 1""",
    "consistency/failed_without_dead_letter": """
        SELECT n.notification_id, n.event_id, n.created_at FROM notification.notifications n
        LEFT JOIN notification.notification_dlq d ON d.notification_id = n.notification_id
        WHERE n.attempt_count >= 10 AND d.dlq_id IS NULL""",
    "consistency/half_processed": """
        SELECT p.event_id, p.processed_at FROM notification.processed_events p
        LEFT JOIN notification.notifications n ON n.event_id = p.event_id
        WHERE p.processed_at >= CAST(:since AS timestamptz) AND n.event_id IS NULL""",
    "consistency/locks": """
        SELECT notification_id, status, locked_by, locked_at, lease_until FROM notification.notifications
        WHERE (status = 'PROCESSING') <> (locked_by IS NOT NULL)
           OR (status = 'PROCESSING') <> (lease_until IS NOT NULL)
           OR (status = 'SENT') <> (sent_at IS NOT NULL)""",
    "consistency/sent_dirty_rows": """
        SELECT notification_id, locked_by, lease_until, next_retry_at FROM notification.notifications
        WHERE status = 'SENT' AND (locked_by IS NOT NULL OR next_retry_at IS NOT NULL)""",
    "database/blocked": "SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    "database/blockers": """
        SELECT b.pid, b.state, b.query FROM pg_stat_activity w
        JOIN pg_stat_activity b ON b.pid = ANY (pg_blocking_pids(w.pid))""",
    "database/connections": "SELECT count(*) FROM pg_stat_activity",
    "database/long_transactions": """
        SELECT pid, application_name, state, now() - xact_start, query FROM pg_stat_activity
        WHERE now() - xact_start > interval '5 seconds' ORDER BY xact_start""",
    "database/sessions": "SELECT application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2",
    "account/states": """
        SELECT o.status, p.event_id IS NOT NULL, n.status, count(*) FROM entitlement.entitlement_audit a
        LEFT JOIN entitlement.outbox_events o
            ON o.aggregate_key = a.user_id || ':' || a.stock_keeping_unit AND o.created_at = a.occurred_at
        LEFT JOIN notification.processed_events p ON p.event_id = o.event_id
        LEFT JOIN notification.notifications n ON n.event_id = o.event_id
        WHERE a.occurred_at >= CAST(:since AS timestamptz) GROUP BY 1, 2, 3""",
    "journey/audit": """
        SELECT * FROM entitlement.entitlement_audit WHERE occurred_at = ANY (CAST(:instants AS timestamptz[]))""",
    "journey/by_user": """
        SELECT event_id, occurred_at FROM notification.notifications
        WHERE payload_json ->> 'user_id' = :typed_user AND occurred_at >= CAST(:since AS timestamptz)""",
    "journey/notifications": """
        SELECT * FROM notification.notifications WHERE event_id = ANY (CAST(:ids AS uuid[]))""",
    "journey/users": """
        SELECT DISTINCT user_id FROM notification.notifications WHERE created_at >= CAST(:since AS timestamptz)""",
    "past/broker": """
        SELECT date_trunc('minute', at), sum(step), sum(sum(step)) OVER (ORDER BY date_trunc('minute', at)) FROM (
            SELECT published_at AS at, 1 AS step FROM entitlement.outbox_events WHERE published_at IS NOT NULL
            UNION ALL SELECT processed_at, -1 FROM notification.processed_events) steps
        GROUP BY 1 ORDER BY 1""",
    "past/notifications": """
        SELECT date_trunc('minute', at), sum(step), sum(sum(step)) OVER (ORDER BY date_trunc('minute', at)) FROM (
            SELECT created_at AS at, 1 AS step FROM notification.notifications
            UNION ALL SELECT sent_at, -1 FROM notification.notifications WHERE sent_at IS NOT NULL) steps
        GROUP BY 1 ORDER BY 1""",
    "past/outbox": """
        SELECT date_trunc('minute', at), sum(step), sum(sum(step)) OVER (ORDER BY date_trunc('minute', at)) FROM (
            SELECT created_at AS at, 1 AS step FROM entitlement.outbox_events
            UNION ALL SELECT published_at, -1 FROM entitlement.outbox_events WHERE published_at IS NOT NULL) steps
        GROUP BY 1 ORDER BY 1""",
    "processed/activity": """
        SELECT max(processed_at), count(*) FILTER (WHERE processed_at > now() - interval '1 minute')
        FROM notification.processed_events""",
    "processed/clock": """
        SELECT max(processed_at) - now(),
            percentile_cont(0.5) WITHIN GROUP (ORDER BY pg_xact_commit_timestamp(xmin) - processed_at)
        FROM notification.processed_events WHERE processed_at > now() - interval '1 hour'""",
    "recovery/failed_tries": """
        SELECT attempt_count, count(*) FILTER (WHERE next_retry_at > now()) FROM notification.notifications
        WHERE attempt_count > 0 AND sent_at IS NULL GROUP BY 1""",
    "recovery/notification_flows": """
        SELECT date_trunc('minute', greatest(created_at, sent_at)), count(*) FROM notification.notifications
        WHERE created_at >= CAST(:since AS timestamptz) OR sent_at >= CAST(:since AS timestamptz) GROUP BY 1""",
    "recovery/outbox_flows": """
        SELECT date_trunc('minute', greatest(created_at, published_at)), count(*) FROM entitlement.outbox_events
        WHERE created_at >= CAST(:since AS timestamptz) OR published_at >= CAST(:since AS timestamptz) GROUP BY 1""",
    "scope/last_event": "SELECT max(created_at) FROM entitlement.outbox_events",
    "sli/affected": """
        SELECT count(*), count(DISTINCT user_id) FROM notification.notifications
        WHERE sent_at IS NULL AND now() - created_at > interval '30 seconds'""",
    "sli/delivered": """
        SELECT count(*), percentile_cont(0.95) WITHIN GROUP (ORDER BY sent_at - occurred_at)
        FROM notification.notifications WHERE sent_at >= CAST(:since AS timestamptz)""",
    "sli/delivered_per_minute": """
        SELECT date_trunc('minute', sent_at), count(*),
            count(*) FILTER (WHERE sent_at - occurred_at >= interval '30 seconds')
        FROM notification.notifications WHERE sent_at >= CAST(:since AS timestamptz) GROUP BY 1""",
    "sli/delivery_cohort": """
        SELECT count(*), count(sent_at), percentile_cont(0.95) WITHIN GROUP (ORDER BY sent_at - occurred_at)
        FROM notification.notifications
        WHERE occurred_at >= CAST(:since AS timestamptz) AND occurred_at < CAST(:until AS timestamptz)""",
    "sli/outbox_age": """
        SELECT count(*), percentile_cont(0.95) WITHIN GROUP (ORDER BY now() - created_at), min(created_at)
        FROM entitlement.outbox_events WHERE published_at IS NULL""",
    "sli/outbox_cohort": """
        SELECT count(*), count(published_at), percentile_cont(0.95) WITHIN GROUP (ORDER BY published_at - created_at)
        FROM entitlement.outbox_events
        WHERE created_at >= CAST(:since AS timestamptz) AND created_at < CAST(:until AS timestamptz)""",
}

QUERIES = (
    {f"notifications/{name}": text for name, text in _NOTIFICATIONS.items()}
    | {f"outbox/{name}": text for name, text in _OUTBOX.items()}
    | _OTHERS
)
