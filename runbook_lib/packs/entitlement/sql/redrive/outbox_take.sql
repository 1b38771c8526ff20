-- Back to the relay: row and ledger in one statement, only what is still FAILED and nobody holds.
WITH due AS (
    SELECT event_id FROM entitlement.outbox_events
    WHERE event_id = ANY (CAST(%(keys)s AS uuid[])) AND status = 'FAILED' AND (lease_until IS NULL OR lease_until <= now())
    FOR UPDATE SKIP LOCKED
), kept AS (
    INSERT INTO runbook.redriven
        (store, decision, state, event_id, incident, action, approved_by, reason, archived)
    SELECT 'outbox', 'redrive', 'waiting', o.event_id, %(incident)s, %(action)s, %(approved_by)s, %(reason)s,
        jsonb_build_object(
            'row', jsonb_build_object(
                'status', o.status, 'attempt_count', o.attempt_count, 'next_retry_at', o.next_retry_at,
                'locked_by', o.locked_by, 'locked_at', o.locked_at, 'lease_until', o.lease_until,
                'last_error', o.last_error
            )
        )
    FROM due JOIN entitlement.outbox_events o ON o.event_id = due.event_id
    RETURNING id, event_id
), given_back AS (
    UPDATE entitlement.outbox_events o
    SET status = 'PENDING', attempt_count = 0, next_retry_at = NULL, last_error = NULL,
        locked_by = NULL, locked_at = NULL, lease_until = NULL
    FROM due WHERE o.event_id = due.event_id
)
SELECT id, event_id FROM kept ORDER BY id
