-- question: which transactions have been open for over 5 s?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    pid,
    coalesce(nullif(application_name, ''), host(client_addr), '-') AS application,
    usename AS role,
    state,
    extract(epoch FROM now() - xact_start) AS transaction_s,
    extract(epoch FROM now() - query_start) AS query_s,
    concat_ws(': ', wait_event_type, wait_event) AS waits_for,
    left(query, 200) AS query
FROM pg_catalog.pg_stat_activity
WHERE xact_start < now() - interval '5 seconds'
  AND pid <> pg_backend_pid()
  AND datname = current_database()
ORDER BY xact_start
LIMIT 50;
