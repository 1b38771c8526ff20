-- question: when were these events sent again or discarded, and what came of it?
-- index: redriven_event_idx
-- cost: index
-- answers: window
SELECT event_id, store, decision, state, at
FROM runbook.redriven
WHERE store IN ('delivery', 'outbox', 'broker') AND event_id = ANY (CAST(:ids AS uuid[]))
ORDER BY id
LIMIT :max_rows;
