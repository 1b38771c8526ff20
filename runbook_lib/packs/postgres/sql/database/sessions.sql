-- question: who is connected, and what do they do?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    coalesce(nullif(application_name, ''), host(client_addr), '-') AS application,
    usename AS role,
    state,
    count(*) AS n,
    count(*) FILTER (WHERE wait_event_type = 'Lock') AS waits_for_lock,
    extract(epoch FROM max(now() - xact_start)) AS longest_transaction_s
FROM pg_catalog.pg_stat_activity
WHERE pid <> pg_backend_pid()
  AND (backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL))
GROUP BY 1, 2, 3
ORDER BY n DESC
LIMIT 50;
