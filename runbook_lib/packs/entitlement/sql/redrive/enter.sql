-- Enter decisions into the ledger. What is discarded is not published any more, either.
WITH letters AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(letters)s)
        AS l (event_id uuid, notification_id uuid, stream_seq bigint, archived jsonb)
), closed AS (
    UPDATE runbook.redriven r SET state = 'discarded', ended_at = now()
    FROM letters l
    WHERE %(decision)s = 'discard' AND r.store = %(store)s AND r.event_id = l.event_id AND r.state = 'publishing'
)
INSERT INTO runbook.redriven
    (store, decision, state, event_id, notification_id, stream_seq, incident, action, approved_by, reason, archived)
SELECT %(store)s, %(decision)s, %(state)s, l.event_id, l.notification_id, l.stream_seq,
    %(incident)s, %(action)s, %(approved_by)s, %(reason)s, l.archived
FROM letters l
RETURNING id, event_id, stream_seq
