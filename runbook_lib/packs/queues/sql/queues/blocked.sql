-- question: which sessions of this database wait for a lock, for how long, and behind whom?
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
  AND a.application_name NOT LIKE 'runbook/%'
ORDER BY wait_s DESC NULLS LAST
LIMIT 50;
