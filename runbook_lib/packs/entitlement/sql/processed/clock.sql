-- question: do the subscriber's times agree with the database's clock (of the last 200 events)?
-- index: processed_events_processed_at_idx
-- cost: index
-- answers: present
SELECT
    count(*) AS n,
    extract(epoch FROM max(processed_at) - now()) AS ahead_s,
    extract(epoch FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY committed_at - processed_at)) AS to_commit_s
FROM (
    SELECT processed_at,
        -- Rows that share a transaction were not written by the subscriber, which writes one by one.
        CASE WHEN current_setting('track_commit_timestamp') = 'on'
            AND count(*) OVER (PARTITION BY CAST(xmin AS text)) = 1
            THEN pg_xact_commit_timestamp(xmin) END AS committed_at
    FROM (
        SELECT processed_at, xmin FROM notification.processed_events
        ORDER BY processed_at DESC
        LIMIT 200
    ) newest
) dated;
