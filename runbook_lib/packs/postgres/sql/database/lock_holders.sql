-- question: who keeps a query out of the tables that it names, since when, and how many others wait there?
-- index: catalog
-- cost: catalog
-- answers: present
-- A query waits for an ACCESS EXCLUSIVE lock alone, also for one that somebody waits for: then whoever is before that one is in the way.
WITH RECURSIVE named (oid) AS (
    SELECT c.oid
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = ANY(CAST(:names AS name[]))
      AND (n.nspname = ANY(CAST(:names AS name[])) OR pg_table_is_visible(c.oid))
    UNION
    SELECT i.inhrelid FROM named t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
), tables (oid) AS (
    SELECT oid FROM named
    UNION
    SELECT i.indexrelid FROM named t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid
), locks AS MATERIALIZED (
    SELECT pid, virtualtransaction, transactionid, relation, mode, granted, waitstart
    FROM pg_catalog.pg_locks
    WHERE NOT granted
       OR (pid IS NULL AND transactionid IS NOT NULL) -- of a prepared transaction, which has no session
       OR (database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
           AND relation IN (SELECT oid FROM tables))
), strong AS (
    SELECT pid, relation, granted FROM locks
    WHERE mode = 'AccessExclusiveLock' AND relation IN (SELECT oid FROM tables)
), chain (pid) AS (
    SELECT pid FROM strong
    UNION
    SELECT b.pid FROM chain c CROSS JOIN LATERAL unnest(pg_blocking_pids(c.pid)) AS b (pid)
), held AS (
    SELECT pid, virtualtransaction,
        string_agg(DISTINCT CAST(CAST(relation AS regclass) AS text), ', ') AS tables,
        string_agg(DISTINCT mode, ', ') AS mode
    FROM locks
    WHERE granted AND relation IN (SELECT relation FROM strong)
    GROUP BY 1, 2
), others AS (
    SELECT
        count(DISTINCT l.pid) AS waiting,
        extract(epoch FROM clock_timestamp() - min(coalesce(l.waitstart, a.query_start))) AS longest_wait_s
    FROM locks l
    JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE NOT l.granted
      AND l.relation IN (SELECT oid FROM tables)
      AND l.pid NOT IN (SELECT pid FROM chain WHERE pid IS NOT NULL)
      AND coalesce(a.application_name, '') NOT LIKE 'runbook/%'
)
SELECT
    a.pid,
    NULL AS gid,
    coalesce(nullif(a.application_name, ''), a.backend_type, '-') AS application,
    host(a.client_addr) AS address,
    a.usename AS role,
    a.state,
    a.backend_type AS kind,
    a.xact_start AS since,
    extract(epoch FROM clock_timestamp() - a.xact_start) AS transaction_s,
    h.tables,
    h.mode,
    a.pid IN (SELECT pid FROM locks WHERE NOT granted AND pid IS NOT NULL) AS waits,
    others.waiting,
    others.longest_wait_s,
    left(a.query, 200) AS query
FROM pg_catalog.pg_stat_activity a
LEFT JOIN held h ON h.pid = a.pid
CROSS JOIN others
WHERE a.pid IN (SELECT pid FROM chain)
  AND coalesce(a.application_name, '') NOT LIKE 'runbook/%'
UNION ALL
SELECT
    NULL, p.gid, '-', NULL, p.owner, 'prepared', NULL, p.prepared,
    extract(epoch FROM clock_timestamp() - p.prepared),
    h.tables, h.mode, false, others.waiting, others.longest_wait_s, NULL
FROM pg_catalog.pg_prepared_xacts p
JOIN locks l ON l.pid IS NULL AND l.transactionid = p.transaction
JOIN held h ON h.pid IS NULL AND h.virtualtransaction = l.virtualtransaction
CROSS JOIN others
ORDER BY waits, transaction_s DESC NULLS LAST
LIMIT 20;
