-- question: how many sessions may be a worker's that listens for jobs, and how many connections are left?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    pg_is_in_recovery() AS standby,
    (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
        OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_others,
    -- The session shows its LISTEN for 30 s. Then it asks a SELECT 1 each 30 s, which others do as well.
    count(*) FILTER (WHERE is_theirs AND (query LIKE 'LISTEN "procrastinate%' OR query = 'SELECT 1')) AS may_listen,
    count(*) FILTER (WHERE is_theirs AND query LIKE 'LISTEN "procrastinate%') AS listens,
    count(*) FILTER (WHERE is_client) AS used,
    CAST(current_setting('max_connections') AS int) - CAST(current_setting('superuser_reserved_connections') AS int)
        - CAST(coalesce(current_setting('reserved_connections', true), '0') AS int) AS usable
FROM (
    SELECT
        query,
        is_client,
        is_client AND datname = current_database() AND application_name NOT LIKE 'runbook/%'
            AND application_name = coalesce(nullif(CAST(:application AS text), ''), application_name) AS is_theirs
    FROM (
        SELECT *, backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL) AS is_client
        FROM pg_catalog.pg_stat_activity
        WHERE pid <> pg_backend_pid()
    ) every
) activity;
