-- question: which jobs stand in front of others that wait for the same lock, and what keeps them?
-- index: procrastinate_jobs_priority_idx_v1, procrastinate_jobs_lock_idx_v1, procrastinate_events_job_id_fkey_v1
-- cost: index
-- answers: present
WITH todo AS MATERIALIZED (
    SELECT id, queue_name, task_name, lock, priority, scheduled_at, attempts, status
    FROM procrastinate_jobs
    WHERE status = 'todo' AND lock IS NOT NULL
    ORDER BY priority DESC, id
    LIMIT :most
), line AS (
    SELECT *, row_number() OVER (PARTITION BY lock ORDER BY status = 'todo', priority DESC, id) AS place
    FROM (
        SELECT * FROM todo
        UNION ALL
        SELECT id, queue_name, task_name, lock, priority, scheduled_at, attempts, status
        FROM procrastinate_jobs
        WHERE status = 'doing' AND lock IS NOT NULL
    ) every
), behind AS (
    SELECT
        lock,
        count(*) AS n,
        -- The first of a line have waited longest, so that not each has to be looked up.
        min(greatest(scheduled_at, (
            SELECT max(at) FROM procrastinate_events e
            WHERE e.job_id = line.id AND e.type IN ('deferred', 'deferred_for_retry', 'retried')
        ))) FILTER (WHERE place <= 10) AS since
    FROM line
    WHERE place > 1 AND (scheduled_at IS NULL OR scheduled_at <= now())
    GROUP BY lock
)
SELECT
    head.id AS job,
    head.queue_name AS queue,
    head.task_name AS task,
    CASE
        WHEN head.status = 'doing' THEN 'doing'
        WHEN head.scheduled_at > now() THEN 'later'
        ELSE 'due'
    END AS state,
    head.attempts,
    behind.n AS behind,
    extract(epoch FROM now() - behind.since) AS oldest_behind_s,
    CASE WHEN head.status = 'todo' AND head.scheduled_at > now()
        THEN extract(epoch FROM head.scheduled_at - now()) END AS begins_in_s
FROM line head
JOIN behind USING (lock)
WHERE head.place = 1
ORDER BY oldest_behind_s DESC NULLS LAST, head.id
LIMIT 50;
