-- question: how many events were published in the 24 h that are kept?
-- index: outbox_published_at_idx
-- cost: scan
-- answers: window
SELECT count(*) AS n
FROM entitlement.outbox_events
WHERE status = 'PUBLISHED'
  AND published_at >= CAST(:as_of AS timestamptz) - interval '24 hours' AND published_at <= CAST(:as_of AS timestamptz);
