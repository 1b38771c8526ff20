-- Back to the worker: row, dead letter and ledger in one statement, only what is still FAILED and nobody holds.
WITH due AS (
    SELECT notification_id FROM notification.notifications
    WHERE notification_id = ANY (CAST(%(keys)s AS uuid[])) AND status = 'FAILED' AND (lease_until IS NULL OR lease_until <= now())
    FOR UPDATE SKIP LOCKED
), letter AS (
    DELETE FROM notification.notification_dlq d USING due WHERE d.notification_id = due.notification_id
    RETURNING d.*
), kept AS (
    INSERT INTO runbook.redriven
        (store, decision, state, event_id, notification_id, incident, action, approved_by, reason, archived)
    SELECT 'delivery', 'redrive', 'waiting', n.event_id, n.notification_id,
        %(incident)s, %(action)s, %(approved_by)s, %(reason)s,
        jsonb_build_object(
            'row', jsonb_build_object(
                'status', n.status, 'attempt_count', n.attempt_count, 'next_retry_at', n.next_retry_at,
                'locked_by', n.locked_by, 'locked_at', n.locked_at, 'lease_until', n.lease_until
            ),
            'dead_letter', to_jsonb(letter)
        )
    FROM due
    JOIN notification.notifications n ON n.notification_id = due.notification_id
    LEFT JOIN letter ON letter.notification_id = due.notification_id
    RETURNING id, event_id
), given_back AS (
    UPDATE notification.notifications n
    SET status = 'PENDING', attempt_count = 0, next_retry_at = NULL,
        locked_by = NULL, locked_at = NULL, lease_until = NULL
    FROM due WHERE n.notification_id = due.notification_id
)
SELECT id, event_id FROM kept ORDER BY id
