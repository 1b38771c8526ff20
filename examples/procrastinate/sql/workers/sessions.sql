-- question: how many sessions listen for jobs, who else is connected here, and how many connections are left?
-- index: catalog
-- cost: catalog
-- answers: present
-- column: sees_others flag
-- column: listeners sessions
-- column: to_all sessions
-- column: named text
-- column: others sessions
-- column: used sessions
-- column: usable sessions
SELECT
    (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
        OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_others,
    count(*) FILTER (WHERE is_here AND listens) AS listeners,
    count(*) FILTER (WHERE is_here AND query LIKE 'LISTEN "procrastinate_any_queue%') AS to_all,
    -- A session that listens to several queues shows the last of them only.
    string_agg(DISTINCT substring(query FROM '^LISTEN "procrastinate_queue_v1#(.*)"'), ', ') FILTER (WHERE is_here) AS named,
    count(*) FILTER (WHERE is_here AND NOT listens AND application_name NOT LIKE 'runbook/%') AS others,
    count(*) FILTER (WHERE is_client) AS used,
    CAST(current_setting('max_connections') AS int) - CAST(current_setting('superuser_reserved_connections') AS int)
        - CAST(coalesce(current_setting('reserved_connections', true), '0') AS int) AS usable
FROM (
    SELECT
        query,
        application_name,
        is_client,
        is_client AND datname = current_database() AS is_here,
        query LIKE 'LISTEN "procrastinate%' AS listens
    FROM (
        SELECT *, backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL) AS is_client
        FROM pg_catalog.pg_stat_activity
        WHERE pid <> pg_backend_pid()
    ) every
) activity;
