-- question: how many outbox events were published in each minute of the window?
-- index: outbox_published_at_idx
-- cost: scan
-- answers: window
SELECT date_trunc('minute', published_at) AS minute, count(*) AS n
FROM entitlement.outbox_events
WHERE status = 'PUBLISHED'
  AND published_at >= CAST(:since AS timestamptz) AND published_at <= CAST(:as_of AS timestamptz)
GROUP BY 1
ORDER BY 1 DESC
LIMIT :max_rows;
