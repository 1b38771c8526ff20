-- question: what waits in each queue now (due, behind a lock, for later), since when, and when was a job of it last begun?
-- index: procrastinate_jobs_priority_idx_v1, procrastinate_events_job_id_fkey_v1, procrastinate_events_pkey
-- cost: index
-- answers: present
WITH todo AS MATERIALIZED (
    -- In the order in which workers take them, so that a cut leaves out those whose turn comes last.
    SELECT id, queue_name, lock, priority, scheduled_at, attempts
    FROM procrastinate_jobs
    WHERE status = 'todo'
    ORDER BY priority DESC, id
    LIMIT :most
), placed AS (
    -- A job waits for its lock behind whatever runs with it, and behind every earlier one that waits for it, also one
    -- whose own time has not come.
    SELECT
        id,
        queue_name,
        scheduled_at,
        scheduled_at IS NULL OR scheduled_at <= now() AS is_due,
        attempts > 0 AS was_tried,
        lock IS NOT NULL AND (
            row_number() OVER (PARTITION BY lock ORDER BY priority DESC, id) > 1
            OR EXISTS (SELECT FROM procrastinate_jobs d WHERE d.status = 'doing' AND d.lock = todo.lock)
        ) AS is_behind
    FROM todo
), waiting AS (
    SELECT
        queue_name,
        count(*) FILTER (WHERE is_due AND NOT is_behind) AS due,
        count(*) FILTER (WHERE is_due AND is_behind) AS behind,
        count(*) FILTER (WHERE NOT is_due) AS later,
        count(*) FILTER (WHERE was_tried AND NOT is_due) AS tried
    FROM placed
    GROUP BY queue_name
), first AS (
    SELECT queue_name, is_behind, id, scheduled_at,
        row_number() OVER (PARTITION BY queue_name, is_behind ORDER BY id) AS place
    FROM placed
    WHERE is_due
), oldest AS (
    -- A job has no time of its own: it waits since it was deferred, or put back, or since the time it was meant for.
    SELECT first.queue_name, first.is_behind, min(greatest(first.scheduled_at, e.at)) AS since
    FROM first
    CROSS JOIN LATERAL (
        SELECT max(at) AS at
        FROM procrastinate_events
        WHERE job_id = first.id AND type IN ('deferred', 'deferred_for_retry', 'retried')
    ) e
    WHERE place <= 100
    GROUP BY first.queue_name, first.is_behind
), running AS (
    SELECT
        j.queue_name,
        count(*) AS doing,
        count(*) FILTER (WHERE w.last_heartbeat >= now() - :stalled_after_s * interval '1 s') AS served
    FROM procrastinate_jobs j
    LEFT JOIN procrastinate_workers w ON w.id = j.worker_id
    WHERE j.status = 'doing'
    GROUP BY j.queue_name
), begun AS (
    -- A job keeps the worker that had it last: one that lives and has taken from a queue listens to it.
    SELECT
        j.queue_name,
        max(e.at) AS at,
        bool_or(w.last_heartbeat >= now() - :stalled_after_s * interval '1 s') AS by_living
    FROM (SELECT job_id, type, at FROM procrastinate_events ORDER BY id DESC LIMIT 5000) e
    JOIN procrastinate_jobs j ON j.id = e.job_id
    LEFT JOIN procrastinate_workers w ON w.id = j.worker_id
    WHERE e.type = 'started'
    GROUP BY j.queue_name
)
SELECT
    queue_name AS queue,
    coalesce(waiting.due, 0) AS due,
    extract(epoch FROM now() - d.since) AS oldest_due_s,
    coalesce(waiting.behind, 0) AS behind,
    extract(epoch FROM now() - b.since) AS oldest_behind_s,
    coalesce(waiting.later, 0) AS later,
    coalesce(waiting.tried, 0) AS tried,
    coalesce(running.doing, 0) AS doing,
    coalesce(running.served, 0) AS served,
    extract(epoch FROM now() - begun.at) AS begun_s,
    coalesce(begun.by_living, false) AS taken_by_living
FROM waiting
FULL JOIN running USING (queue_name)
FULL JOIN begun USING (queue_name)
LEFT JOIN (SELECT queue_name, since FROM oldest WHERE NOT is_behind) d USING (queue_name)
LEFT JOIN (SELECT queue_name, since FROM oldest WHERE is_behind) b USING (queue_name)
ORDER BY due DESC, queue;
