-- question: how did the tries of each task end lately, and how many jobs were put back by hand?
-- index: procrastinate_events_pkey, procrastinate_events_job_id_fkey_v1, procrastinate_jobs_pkey
-- cost: index
-- answers: present
WITH newest AS (
    -- No index has the time, and numbers are given in its order; `scheduled` bears a time to come.
    SELECT id, job_id, type, at FROM procrastinate_events ORDER BY id DESC LIMIT :most
), lately AS (
    SELECT
        job_id,
        at,
        type = 'started' AS begun,
        type = 'succeeded' AS succeeded,
        type = 'failed' AS failed,
        type = 'deferred_for_retry' AS retried,
        -- A worker sets the time of the next try by its own clock. Who puts a job back by hand gives the database's, or
        -- (the shell of procrastinate) a whole second that has begun.
        type = 'deferred_for_retry' AND EXISTS (
            SELECT FROM procrastinate_events s
            WHERE s.job_id = newest.job_id AND s.type = 'scheduled' AND s.id BETWEEN newest.id - 3 AND newest.id + 3
              AND s.at <= newest.at AND (s.at = newest.at OR s.at = date_trunc('second', newest.at))
        ) AS put_back
    FROM newest
    WHERE type <> 'scheduled' AND at >= now() - :within_s * interval '1 s'
)
SELECT
    j.task_name AS task,
    count(*) FILTER (WHERE begun) AS begun,
    count(*) FILTER (WHERE succeeded) AS succeeded,
    count(*) FILTER (WHERE retried AND NOT put_back) AS retried,
    count(*) FILTER (WHERE put_back) AS put_back,
    count(*) FILTER (WHERE failed) AS failed,
    extract(epoch FROM now() - max(at) FILTER (WHERE failed OR (retried AND NOT put_back))) AS last_failed_s
FROM lately
JOIN procrastinate_jobs j ON j.id = lately.job_id
GROUP BY j.task_name
ORDER BY count(*) FILTER (WHERE failed OR (retried AND NOT put_back)) DESC, j.task_name
LIMIT 50;
