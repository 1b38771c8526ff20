-- What has come to its end is not looked at again.
UPDATE runbook.redriven r SET state = ended.state, ended_at = now()
FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(states)s AS text[])) AS ended (id, state)
WHERE r.id = ended.id AND r.state IN ('publishing', 'waiting')
