-- question: how large were the relay's last batches, how far apart, how long (exactly where commit times are tracked)?
-- index: outbox_published_at_idx
-- cost: index
-- answers: present
WITH newest AS (
    SELECT published_at, created_at, attempt_count, xmin
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at > now() - interval '1 hour'
    ORDER BY published_at DESC
    LIMIT 2000
), marked AS (
    SELECT published_at, created_at, attempt_count,
        -- Rows that share a transaction were not marked by the relay, which marks one by one.
        CASE WHEN current_setting('track_commit_timestamp') = 'on'
            AND count(*) OVER (PARTITION BY CAST(xmin AS text)) = 1
            THEN pg_xact_commit_timestamp(xmin) END AS marked_at
    FROM newest
), batch AS (
    SELECT published_at AS started, count(*) AS n, max(marked_at) AS ended,
        -- How long its rows had waited for it: longer than a poll means that the batch before was still going on.
        max(published_at - created_at) FILTER (WHERE attempt_count = 0) AS waited
    FROM marked
    GROUP BY published_at
)
SELECT
    started,
    n,
    extract(epoch FROM ended - started) AS exact_s,
    extract(epoch FROM lead(started) OVER later - started) AS cycle_s,
    extract(epoch FROM lead(waited) OVER later) AS next_waited_s
FROM batch
WINDOW later AS (ORDER BY started)
ORDER BY started DESC
LIMIT :max_rows;
