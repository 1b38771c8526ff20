-- question: how many of the connections that an ordinary role can get are taken, and may we see whose?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    CAST(current_setting('max_connections') AS int) AS max_connections,
    CAST(current_setting('superuser_reserved_connections') AS int) AS superuser_reserved,
    CAST(coalesce(current_setting('reserved_connections', true), '0') AS int) AS reserved,
    (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
        OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_others,
    -- The module is loaded, and its view is here and may be read.
    current_setting('pg_stat_statements.max', true) IS NOT NULL
        AND coalesce(has_table_privilege(to_regclass('pg_stat_statements'), 'SELECT'), false) AS keeps_statements,
    current_setting('synchronous_standby_names') AS standbys,
    count(*) FILTER (WHERE backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL)) AS used
FROM pg_catalog.pg_stat_activity
WHERE pid <> pg_backend_pid();
