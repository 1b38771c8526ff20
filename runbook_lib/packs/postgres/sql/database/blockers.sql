-- question: which sessions stand in the way of the services, or at their tables, and do not wait themselves, and what are they?
-- index: catalog
-- cost: catalog
-- answers: present
WITH waiting AS (
    SELECT DISTINCT l.pid
    FROM pg_catalog.pg_locks l
    JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE NOT l.granted
      AND a.datname = current_database()
      -- As in database/blocked.
      AND l.locktype <> 'virtualxid'
      AND CASE WHEN l.relation IS NULL
          -- Where no such role exists, the services log in as another.
          THEN a.usename = (SELECT coalesce(max(rolname), a.usename) FROM pg_catalog.pg_roles WHERE rolname = CAST(:role AS name))
          ELSE l.relation IN (SELECT oid FROM pg_catalog.pg_class
                              WHERE relnamespace IN (SELECT oid FROM pg_catalog.pg_namespace
                                                     WHERE nspname = ANY(coalesce(CAST(:schemas AS name[]), current_schemas(false)))))
      END
    LIMIT 50
), chain AS (
    SELECT w.pid AS waiter, b.pid AS blocker FROM waiting w CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b (pid)
)
SELECT
    a.pid,
    coalesce(nullif(a.application_name, ''), host(a.client_addr), '-') AS application,
    a.usename AS role,
    a.state,
    count(DISTINCT c.waiter) AS blocks,
    extract(epoch FROM clock_timestamp() - a.xact_start) AS transaction_s,
    extract(epoch FROM clock_timestamp() - a.state_change) AS in_state_s,
    left(a.query, 200) AS query
FROM chain c
JOIN pg_catalog.pg_stat_activity a ON a.pid = c.blocker
WHERE c.blocker NOT IN (SELECT pid FROM pg_catalog.pg_locks WHERE NOT granted)
GROUP BY a.pid, a.application_name, a.client_addr, a.usename, a.state, a.xact_start, a.state_change, a.query
ORDER BY blocks DESC, transaction_s DESC
LIMIT 20;
