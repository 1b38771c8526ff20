-- question: which open transactions hold locks of the table, though nobody seems to wait for them?
-- index: catalog
-- cost: catalog
-- answers: present
-- Workers step over locked rows (SKIP LOCKED), so rows of such a transaction stay due without a wait to be seen.
SELECT
    a.pid,
    coalesce(nullif(a.application_name, ''), host(a.client_addr), '-') AS application,
    a.state,
    l.mode,
    extract(epoch FROM clock_timestamp() - a.xact_start) AS transaction_s,
    left(a.query, 200) AS query
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.granted
    AND l.relation = to_regclass(:table)
    AND l.mode <> 'AccessShareLock'
    AND a.pid <> pg_backend_pid()
    AND a.datname = current_database()
ORDER BY a.xact_start
LIMIT 20;
