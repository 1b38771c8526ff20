-- question: which workers are registered, when did each last give a sign, and how many jobs has it in hand?
-- index: procrastinate_workers_pkey, procrastinate_jobs_lock_idx_v1
-- cost: index
-- answers: present
SELECT
    w.id AS worker,
    extract(epoch FROM now() - w.last_heartbeat) AS silent_s,
    (SELECT count(*) FROM procrastinate_jobs j WHERE j.status = 'doing' AND j.worker_id = w.id) AS doing
FROM procrastinate_workers w
ORDER BY w.last_heartbeat DESC
LIMIT 200;
