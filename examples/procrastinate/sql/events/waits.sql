-- question: how long did the jobs that were begun lately wait for it?
-- index: procrastinate_events_pkey, procrastinate_events_job_id_fkey_v1
-- cost: index
-- answers: present
SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY wait_s) AS p95_s
FROM (
    -- Since it was deferred or put back, or, where it was meant for later, since then: the newest event before the start.
    SELECT greatest(extract(epoch FROM e.at - (
        SELECT max(b.at) FROM procrastinate_events b
        WHERE b.job_id = e.job_id AND b.id < e.id AND b.type IN ('deferred', 'deferred_for_retry', 'retried', 'scheduled')
    )), 0) AS wait_s
    FROM (SELECT id, job_id, type, at FROM procrastinate_events ORDER BY id DESC LIMIT 2000) e
    WHERE e.type = 'started' AND e.at >= now() - :within_s * interval '1 s'
) begun
WHERE wait_s IS NOT NULL;
