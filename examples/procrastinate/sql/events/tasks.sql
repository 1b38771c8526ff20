-- question: how did the tries of each task end lately?
-- index: procrastinate_events_pkey, procrastinate_jobs_pkey
-- cost: index
-- answers: present
-- column: task text
-- column: begun rows
-- column: succeeded rows
-- column: retried rows
-- column: failed rows
-- column: last_failed_s s
SELECT
    j.task_name AS task,
    count(*) FILTER (WHERE e.type = 'started') AS begun,
    count(*) FILTER (WHERE e.type = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE e.type = 'deferred_for_retry') AS retried,
    count(*) FILTER (WHERE e.type = 'failed') AS failed,
    extract(epoch FROM now() - max(e.at) FILTER (WHERE e.type IN ('deferred_for_retry', 'failed'))) AS last_failed_s
FROM (
    -- No index has the time, and numbers are given in its order; `scheduled` bears a time to come.
    SELECT job_id, type, at FROM procrastinate_events ORDER BY id DESC LIMIT :most
) e
JOIN procrastinate_jobs j ON j.id = e.job_id
WHERE e.type <> 'scheduled' AND e.at >= now() - :within_s * interval '1 s'
GROUP BY j.task_name
ORDER BY count(*) FILTER (WHERE e.type IN ('deferred_for_retry', 'failed')) DESC, j.task_name
LIMIT 50;
