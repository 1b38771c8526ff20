-- question: which jobs are in `doing`, since when, in whose hands, and how many wait for their lock?
-- index: procrastinate_jobs_lock_idx_v1, procrastinate_events_job_id_fkey_v1
-- cost: index
-- answers: present
WITH locked AS (
    SELECT lock, count(*) AS n
    FROM (
        SELECT lock FROM procrastinate_jobs WHERE status = 'todo' ORDER BY priority DESC, id LIMIT :most
    ) todo
    GROUP BY lock
)
SELECT
    j.id AS job,
    j.queue_name AS queue,
    j.task_name AS task,
    j.attempts,
    j.abort_requested,
    j.worker_id AS worker,
    extract(epoch FROM now() - w.last_heartbeat) AS silent_s,
    extract(epoch FROM now() - (
        SELECT max(at) FROM procrastinate_events WHERE job_id = j.id AND type = 'started'
    )) AS running_s,
    coalesce(locked.n, 0) AS behind
FROM procrastinate_jobs j
LEFT JOIN procrastinate_workers w ON w.id = j.worker_id
LEFT JOIN locked ON locked.lock = j.lock
WHERE j.status = 'doing'
ORDER BY running_s DESC NULLS FIRST, j.id
LIMIT 200;
