-- question: which statements of the services have taken the database longest since its statistics began?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    left(regexp_replace(s.query, '\s+', ' ', 'g'), 200) AS statement,
    sum(s.calls) AS calls,
    sum(s.total_exec_time) / 1000 AS total_s,
    sum(s.total_exec_time) / nullif(sum(s.calls), 0) / 1000 AS mean_s,
    max(s.max_exec_time) / 1000 AS longest_s,
    (SELECT stats_reset FROM pg_stat_statements_info) AS since
FROM pg_stat_statements s
WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND s.userid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = CAST(:role AS name))
GROUP BY s.queryid, s.query
ORDER BY total_s DESC
LIMIT 10;
