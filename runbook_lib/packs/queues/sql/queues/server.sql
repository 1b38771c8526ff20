-- question: who are we here, what may we see, and what is the server?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    current_setting('server_version') AS version,
    current_user AS role,
    current_database() AS database,
    (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
        OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_others,
    pg_is_in_recovery() AS standby;
