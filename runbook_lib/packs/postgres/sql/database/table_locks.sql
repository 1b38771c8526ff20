-- question: which sessions hold a lock on a table of the services that keeps out whoever writes, waited for or not?
-- index: catalog
-- cost: catalog
-- answers: present
-- An autovacuum worker gives such a lock up as soon as somebody waits for it.
SELECT
    l.pid,
    coalesce(nullif(a.application_name, ''), host(a.client_addr), '-') AS application,
    a.usename AS role,
    a.state,
    string_agg(DISTINCT n.nspname || '.' || c.relname, ', ') AS tables,
    string_agg(DISTINCT l.mode, ', ') AS mode,
    extract(epoch FROM clock_timestamp() - a.xact_start) AS transaction_s,
    extract(epoch FROM clock_timestamp() - a.state_change) AS in_state_s,
    left(a.query, 200) AS query
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_class c ON c.oid = l.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.granted
  AND l.locktype = 'relation'
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND n.nspname = ANY(coalesce(CAST(:schemas AS name[]), current_schemas(false)))
  AND c.relkind IN ('r', 'p')
  AND coalesce(a.backend_type, '') <> 'autovacuum worker'
GROUP BY l.pid, a.application_name, a.client_addr, a.usename, a.state, a.xact_start, a.state_change, a.query
ORDER BY transaction_s DESC NULLS LAST
LIMIT 20;
