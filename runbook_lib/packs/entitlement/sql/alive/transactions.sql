-- question: how many transactions of this database have ended well, and how many were rolled back, until now?
-- index: catalog
-- cost: catalog
-- answers: present
-- Registrations are never updated, so a dead one was rolled back, or deleted by the clean-up.
SELECT
    xact_commit AS commits, xact_rollback AS rollbacks, clock_timestamp() AS at,
    coalesce((SELECT n_dead_tup FROM pg_catalog.pg_stat_all_tables
              WHERE schemaname = 'notification' AND relname = 'processed_events'), 0) AS refused
FROM pg_catalog.pg_stat_database
WHERE datname = current_database();
