-- question: is the schema of procrastinate there, readable, and of a version that this runbook knows?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    name,
    kind,
    CASE kind
        WHEN 'table' THEN to_regclass(name) IS NOT NULL
        WHEN 'column' THEN EXISTS (
            SELECT FROM pg_catalog.pg_attribute
            WHERE attrelid = to_regclass(split_part(name, '.', 1)) AND attname = split_part(name, '.', 2) AND NOT attisdropped
        )
        ELSE to_regproc(name) IS NOT NULL
    END AS there,
    CASE kind WHEN 'table' THEN has_table_privilege(to_regclass(name), 'SELECT') END AS readable
FROM (VALUES
    ('procrastinate_jobs', 'table'),
    ('procrastinate_events', 'table'),
    ('procrastinate_workers', 'table'),
    ('procrastinate_jobs.worker_id', 'column'),
    ('procrastinate_jobs.lock', 'column'),
    ('procrastinate_jobs.abort_requested', 'column'),
    ('procrastinate_workers.last_heartbeat', 'column'),
    ('procrastinate_retry_job_v1', 'function'),
    ('procrastinate_cancel_job_v1', 'function')
) expected (name, kind)
ORDER BY kind DESC, name;
