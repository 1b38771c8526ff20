-- question: how many transactions of this database have ended well, and how many were rolled back, until now?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT xact_commit AS commits, xact_rollback AS rollbacks, clock_timestamp() AS at
FROM pg_catalog.pg_stat_database
WHERE datname = current_database();
