-- What became of these rows of the ledger, or of all that have not come to an end.
SELECT r.id, r.event_id, n.user_id,
    -- All matches are filed under one user: duplicates are looked for about this time.
    CASE WHEN n.type = 'MatchFound' THEN n.created_at END AS match_at,
    CASE
        WHEN r.state <> 'waiting' THEN r.state
        WHEN n.notification_id IS NULL THEN 'missing'
        WHEN n.status = 'SENT' THEN 'succeeded'
        WHEN n.status = 'FAILED' THEN 'failed'
        ELSE 'waiting'
    END AS outcome
FROM runbook.redriven r
LEFT JOIN notification.notifications n ON n.notification_id = r.notification_id
WHERE r.store = 'delivery' AND r.decision = 'redrive'
  AND (r.id = ANY (CAST(%(ids)s AS bigint[]))
       OR CAST(%(ids)s AS bigint[]) IS NULL AND r.state IN ('publishing', 'waiting'))
ORDER BY r.id
