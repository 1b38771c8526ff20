-- question: how many of the connections that an ordinary role can get are taken, and may we see whose?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
        OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_others,
    count(*) FILTER (WHERE backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL)) AS used,
    CAST(current_setting('max_connections') AS integer) - CAST(current_setting('superuser_reserved_connections') AS integer)
        - CAST(coalesce(current_setting('reserved_connections', true), '0') AS integer) AS usable
FROM pg_catalog.pg_stat_activity
WHERE pid <> pg_backend_pid();
