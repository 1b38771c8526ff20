-- question: which sessions stand in the way of those, without waiting themselves?
-- index: catalog
-- cost: catalog
-- answers: present
WITH waiting AS (
    SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE NOT granted LIMIT 50
), chain AS (
    SELECT w.pid AS waiter, b.pid AS blocker
    FROM waiting w CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b (pid)
)
SELECT
    a.pid,
    coalesce(nullif(a.application_name, ''), host(a.client_addr), '-') AS application,
    a.usename AS role,
    a.state,
    count(DISTINCT c.waiter) AS blocks,
    extract(epoch FROM clock_timestamp() - a.xact_start) AS transaction_s,
    left(a.query, 200) AS query
FROM chain c
JOIN pg_catalog.pg_stat_activity a ON a.pid = c.blocker
WHERE a.datname = current_database() AND c.blocker NOT IN (SELECT pid FROM waiting)
GROUP BY a.pid, a.application_name, a.client_addr, a.usename, a.state, a.xact_start, a.query
ORDER BY blocks DESC, transaction_s DESC
LIMIT 20;
