-- question: do the delivery worker's times agree with the database's clock?
-- index: notifications_processing_idx, notifications_pending_idx
-- cost: index
-- answers: present
WITH newest AS (
    SELECT sent_at, created_at, xmin, row_number() OVER (ORDER BY created_at DESC) AS nth
    FROM notification.notifications
    WHERE status = 'SENT' AND next_retry_at IS NULL
    ORDER BY created_at DESC
    LIMIT 400
), marked AS (
    SELECT sent_at, created_at, nth,
        -- Rows that share a transaction were not marked by the worker, which marks one by one.
        CASE WHEN current_setting('track_commit_timestamp') = 'on'
            AND count(*) OVER (PARTITION BY CAST(xmin AS text)) = 1
            THEN pg_xact_commit_timestamp(xmin) END AS marked_at
    FROM newest
)
SELECT
    current_setting('track_commit_timestamp') = 'on' AS tracked,
    held.n AS held,
    extract(epoch FROM held.newest - now()) AS claim_ahead_s,
    extract(epoch FROM held.furthest - now()) AS lease_ahead_s,
    held.born_expired AS born_expired,
    sent.n AS sent,
    extract(epoch FROM sent.newest - now()) AS sent_ahead_s,
    extract(epoch FROM sent.delay) AS shortest_delay_s,
    -- A batch is marked after it began: the shortest such time that is below 0 is skew, ahead by that much.
    extract(epoch FROM sent.to_mark) AS shortest_to_mark_s
FROM
    (SELECT count(*) AS n, max(locked_at) AS newest, max(lease_until) AS furthest,
        count(*) FILTER (WHERE lease_until <= locked_at) AS born_expired
     FROM notification.notifications WHERE status = 'PROCESSING') held,
    (SELECT count(*) AS n, max(sent_at) AS newest,
        -- A row that was created so far ahead was created by another clock than the subscriber's.
        min(sent_at - created_at) FILTER (WHERE created_at <= now() + interval '5 minutes') AS delay,
        min(marked_at - sent_at) AS to_mark
     -- The older half only shows whose transactions go on beyond the newer one.
     FROM marked WHERE nth <= 200) sent;
