-- Enter decisions into the ledger.
INSERT INTO runbook.redriven
    (store, decision, state, event_id, notification_id, stream_seq, incident, action, approved_by, reason, archived)
SELECT %(store)s, %(decision)s, %(state)s, l.event_id, l.notification_id, l.stream_seq,
    %(incident)s, %(action)s, %(approved_by)s, %(reason)s, l.archived
FROM jsonb_to_recordset(%(letters)s)
    AS l (event_id uuid, notification_id uuid, stream_seq bigint, archived jsonb)
RETURNING id, event_id, stream_seq
