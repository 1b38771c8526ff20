-- question: how large were the relay's last batches, how far apart, how long (exactly where commit times are tracked)?
-- index: outbox_published_at_idx
-- cost: index
-- answers: present
WITH newest AS (
    SELECT published_at, xmin
    FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at > now() - interval '1 hour'
    ORDER BY published_at DESC
    LIMIT 2000
), marked AS (
    SELECT published_at,
        -- Rows that share a transaction were not marked by the relay, which marks one by one.
        CASE WHEN current_setting('track_commit_timestamp') = 'on'
            AND count(*) OVER (PARTITION BY CAST(xmin AS text)) = 1
            THEN pg_xact_commit_timestamp(xmin) END AS marked_at
    FROM newest
), batch AS (
    SELECT published_at AS started, count(*) AS n, max(marked_at) AS ended
    FROM marked
    GROUP BY published_at
)
SELECT
    started,
    n,
    extract(epoch FROM ended - started) AS exact_s,
    extract(epoch FROM lead(started) OVER (ORDER BY started) - started) AS cycle_s
FROM batch
ORDER BY started DESC
LIMIT :max_rows;
