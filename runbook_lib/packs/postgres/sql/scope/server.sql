-- question: which server is this, and who are we in it?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    session_user AS role,
    current_database() AS database,
    current_setting('server_version') AS version,
    pg_is_in_recovery() AS is_replica,
    pg_postmaster_start_time() AS started_at,
    now() AS now,
    r.rolsuper AS superuser,
    -- What of pg_monitor shows other sessions.
    pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE') AS monitor,
    -- A role that this version does not know gives NULL.
    coalesce(pg_has_role(r.oid, (SELECT m.oid FROM pg_catalog.pg_roles m
        WHERE m.rolname = 'pg_use_reserved_connections'), 'USAGE'), false) AS may_use_reserved,
    current_setting('transaction_read_only') AS read_only,
    current_setting('track_commit_timestamp') AS track_commit_timestamp
FROM pg_catalog.pg_roles r
WHERE r.rolname = session_user;
