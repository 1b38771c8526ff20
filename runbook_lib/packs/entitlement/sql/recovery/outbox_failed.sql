-- question: how many events were given up by the relay (of the newest 20,000), and when was the last (exact where commit times are kept)?
-- index: outbox_pick_idx
-- cost: index
-- answers: present
SELECT count(*) AS n, max(created_at) AS newest,
    max(CASE WHEN current_setting('track_commit_timestamp') = 'on' THEN pg_xact_commit_timestamp(xmin) END) AS last_failed
FROM (
    SELECT created_at, xmin FROM entitlement.outbox_events
    WHERE status = 'FAILED'
    ORDER BY next_retry_at DESC, created_at DESC  -- as the index is ordered: the newest ones
    LIMIT 20000
) failed;
