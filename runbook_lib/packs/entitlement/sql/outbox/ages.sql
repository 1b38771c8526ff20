-- question: when was the newest event written and the newest given up (of 20,000), and how old are the unpublished ones?
-- index: outbox_pick_idx, outbox_published_at_idx
-- cost: index
-- answers: present
-- A time that is further ahead than clocks differ is not read: 4.3.5 counts such rows. What was published had been written.
SELECT
    now() AS now,
    least(greatest(written.at, tried.at, published.at), now()) AS last_event,
    unpublished.p95,
    failed.n,
    failed.newest,
    failed.last_failed
FROM
    -- Of those that are published: the newest that never needed a second try.
    (SELECT max(created_at) AS at
     FROM (VALUES ('PENDING'), ('IN_FLIGHT'), ('PUBLISHED'), ('FAILED')) AS s (status)
     CROSS JOIN LATERAL (
         SELECT e.created_at FROM entitlement.outbox_events e
         WHERE e.status = s.status AND e.next_retry_at IS NULL AND e.created_at <= now() + interval '5 minutes'
         ORDER BY e.next_retry_at DESC, e.created_at DESC  -- as the index is ordered; alone, created_at would be sorted
         LIMIT 1
     ) newest) written,
    (SELECT max(created_at) AS at FROM entitlement.outbox_events
     WHERE status IN ('PENDING', 'IN_FLIGHT') AND next_retry_at IS NOT NULL AND created_at <= now() + interval '5 minutes') tried,
    (SELECT max(published_at) AS at FROM entitlement.outbox_events
     WHERE status = 'PUBLISHED' AND published_at <= now() + interval '5 minutes') published,
    (SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM now() - least(created_at, now()))) AS p95
     FROM (
         SELECT created_at FROM entitlement.outbox_events
         WHERE status IN ('PENDING', 'IN_FLIGHT') AND created_at <= now() + interval '5 minutes'
         LIMIT 20000
     ) waiting) unpublished,
    (SELECT count(*) AS n, max(created_at) AS newest,
         -- Exact where commit times are kept.
         max(CASE WHEN current_setting('track_commit_timestamp') = 'on' THEN pg_xact_commit_timestamp(xmin) END)
             AS last_failed
     FROM (
         SELECT created_at, xmin FROM entitlement.outbox_events
         WHERE status = 'FAILED'
         ORDER BY next_retry_at DESC, created_at DESC  -- as the index is ordered: the newest ones
         LIMIT 20000
     ) given_up) failed;
