-- question: which sessions of the services, or at their tables, wait for a lock, for how long, and who is in their way?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    l.pid,
    extract(epoch FROM clock_timestamp() - coalesce(l.waitstart, a.query_start)) AS wait_s,
    array_to_string(pg_blocking_pids(l.pid), ', ') AS blocked_by,
    l.mode,
    coalesce(CAST(CAST(l.relation AS regclass) AS text), l.locktype) AS object,
    coalesce(nullif(a.application_name, ''), host(a.client_addr), '-') AS application,
    left(a.query, 200) AS query
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE NOT l.granted
  AND a.datname = current_database()
  AND coalesce(a.application_name, '') NOT LIKE 'runbook/%'
  -- An index that is built concurrently waits for the transactions of others, and nobody for it.
  AND l.locktype <> 'virtualxid'
  AND CASE WHEN l.relation IS NULL
      -- Where no such role exists, the services log in as another.
      THEN a.usename = (SELECT coalesce(max(rolname), a.usename) FROM pg_catalog.pg_roles WHERE rolname = CAST(:role AS name))
      ELSE l.relation IN (SELECT oid FROM pg_catalog.pg_class
                          WHERE relnamespace IN (SELECT oid FROM pg_catalog.pg_namespace
                                                 WHERE nspname = ANY(coalesce(CAST(:schemas AS name[]), current_schemas(false)))))
  END
ORDER BY wait_s DESC NULLS LAST
LIMIT 50;
