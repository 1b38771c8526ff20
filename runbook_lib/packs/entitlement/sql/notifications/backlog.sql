-- question: what waits in notifications now: due, waiting for retry, leased, expired, and how old is the oldest?
-- index: notifications_pending_idx, notifications_processing_idx
-- cost: index
-- answers: present
SELECT
    now() AS now,
    pending.due,
    extract(epoch FROM now() - pending.oldest) AS oldest_due_s,
    pending.waiting AS waiting_retry,
    processing.leased,
    processing.expired,
    extract(epoch FROM now() - processing.oldest) AS oldest_expired_s,
    pending.overdue AS overdue_10min,
    strays.n AS strays,
    strays.states AS stray_states
FROM
    -- By ranges of the index: of what is finished nothing is read.
    (SELECT count(*) AS n, string_agg(DISTINCT status, ', ') AS states
     FROM (
         SELECT status FROM notification.notifications
         WHERE status < 'FAILED' OR (status > 'FAILED' AND status < 'PENDING') OR (status > 'PENDING' AND status < 'PROCESSING')
            OR (status > 'PROCESSING' AND status < 'SENT') OR status > 'SENT'
         LIMIT 5000
     ) others) strays,
    (SELECT
        count(*) FILTER (WHERE since <= now()) AS due,
        min(since) FILTER (WHERE since <= now()) AS oldest,
        count(*) FILTER (WHERE since > now()) AS waiting,
        count(*) FILTER (WHERE since < now() - interval '10 minutes') AS overdue
     FROM (
         -- One walk over the index holds all of it. Due since the retry time; without one, since it was created.
         SELECT CASE WHEN next_retry_at IS NULL THEN least(created_at, now()) ELSE next_retry_at END AS since
         FROM notification.notifications
         WHERE status = 'PENDING'
     ) dated) pending,
    (SELECT
        count(*) FILTER (WHERE lease_until > now()) AS leased,
        count(*) FILTER (WHERE lease_until IS NULL OR lease_until <= now()) AS expired,
        min(lease_until) FILTER (WHERE lease_until <= now()) AS oldest
     FROM notification.notifications
     WHERE status = 'PROCESSING') processing;
