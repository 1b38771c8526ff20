-- question: how long did the last batches take (from their starts, and exactly where commit times are tracked)?
-- index: notifications_pending_idx
-- cost: index
-- answers: present
WITH newest AS (
    SELECT sent_at, created_at, attempt_count, xmin
    FROM notification.notifications
    WHERE status = 'SENT' AND next_retry_at IS NULL
    ORDER BY created_at DESC
    LIMIT 2000
), marked AS (
    SELECT sent_at, created_at, attempt_count,
        -- Rows that share a transaction were not marked by the worker, which marks one by one.
        CASE WHEN current_setting('track_commit_timestamp') = 'on'
            AND count(*) OVER (PARTITION BY CAST(xmin AS text)) = 1
            THEN pg_xact_commit_timestamp(xmin) END AS marked_at
    FROM newest
), batch AS (
    SELECT sent_at AS started, count(*) AS n, max(marked_at) AS ended,
        -- How long its rows had waited for it: longer than a poll means that the batch before was still going on.
        max(sent_at - created_at) FILTER (WHERE attempt_count = 0) AS waited
    FROM marked
    GROUP BY sent_at
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
