-- question: what waits in the outbox now: due, waiting for retry, leased, expired, failed, and how old is the oldest?
-- index: outbox_pick_idx, outbox_inflight_lease_idx
-- cost: index
-- answers: present
-- A time that is further ahead than clocks differ is not read: 4.3.5 counts such rows.
SELECT
    now() AS now,
    fresh.n + again.n AS due,
    extract(epoch FROM now() - least(fresh.oldest, again.oldest)) AS oldest_due_s,
    waiting.n AS waiting_retry,
    leased.n AS leased,
    over.n AS expired,
    extract(epoch FROM now() - over.oldest) AS oldest_expired_s,
    failed.n AS failed,
    unpublished.attempts AS max_attempt_count,
    unpublished.tried AS tried,
    leased.last_claim,
    (SELECT max(published_at) FROM entitlement.outbox_events
     WHERE status = 'PUBLISHED' AND published_at <= now() + interval '5 minutes') AS last_published,
    (SELECT count(*) FROM entitlement.outbox_events
     WHERE status = 'PUBLISHED' AND published_at > now() - interval '1 minute'
       AND published_at <= now() + interval '5 minutes') AS published_1m,
    (SELECT count(*) FROM entitlement.outbox_events
     WHERE status = 'PUBLISHED' AND published_at > now() - interval '2 minutes'
       AND least(created_at, published_at) > now() - interval '1 minute' AND published_at <= now() + interval '5 minutes')
    + (SELECT count(*) FROM entitlement.outbox_events
       WHERE status IN ('PENDING', 'IN_FLIGHT', 'FAILED')
         AND created_at > now() - interval '1 minute' AND created_at <= now() + interval '5 minutes') AS arrived_1m,
    -- The relay sets a retry time only after a failed try, and none later than this (and 5 s for its clock).
    waiting.postponed,
    strays.n AS strays,
    strays.states AS stray_states
FROM
    -- By ranges of the index: of what is finished nothing is read.
    (SELECT count(*) AS n, string_agg(DISTINCT status, ', ') AS states
     FROM (
         SELECT status FROM entitlement.outbox_events
         WHERE status < 'FAILED' OR (status > 'FAILED' AND status < 'IN_FLIGHT') OR (status > 'IN_FLIGHT' AND status < 'PENDING')
            OR (status > 'PENDING' AND status < 'PUBLISHED') OR status > 'PUBLISHED'
         LIMIT 5000
     ) others) strays,
    (SELECT count(*) AS n, min(least(created_at, now())) AS oldest
     FROM entitlement.outbox_events
     WHERE status = 'PENDING' AND next_retry_at IS NULL) fresh,
    (SELECT count(*) AS n, min(next_retry_at) AS oldest
     FROM entitlement.outbox_events
     WHERE status = 'PENDING' AND next_retry_at <= now()) again,
    (SELECT count(*) AS n, count(*) FILTER (
         WHERE attempt_count = 0
            OR next_retry_at > now() + interval '1.5 seconds' * least(60, 2 ^ (attempt_count - 1)) + interval '5 s'
     ) AS postponed
     FROM entitlement.outbox_events
     WHERE status = 'PENDING' AND next_retry_at > now()) waiting,
    (SELECT count(*) FILTER (WHERE lease_until > now()) AS n, max(locked_at) AS last_claim
     FROM entitlement.outbox_events
     WHERE status = 'IN_FLIGHT') leased,
    (SELECT count(*) AS n, min(lease_until) AS oldest
     FROM entitlement.outbox_events
     WHERE status = 'IN_FLIGHT' AND (lease_until IS NULL OR lease_until <= now())) over,
    (SELECT count(*) AS n
     FROM entitlement.outbox_events
     WHERE status = 'FAILED') failed,
    (SELECT max(attempt_count) AS attempts,
            count(*) FILTER (WHERE attempt_count > 0 AND NOT coalesce(postponed, false)) AS tried
     FROM (
         SELECT attempt_count,
             next_retry_at > now() + interval '1.5 seconds' * least(60, 2 ^ (attempt_count - 1)) + interval '5 s' AS postponed
         FROM entitlement.outbox_events
         WHERE status IN ('PENDING', 'IN_FLIGHT')
         LIMIT 5000
     ) sample) unpublished;
