-- question: for how long has the oldest event been registered, and how many registrations were made and deleted, counted since when?
-- index: processed_events_processed_at_idx
-- cost: index
-- answers: present
SELECT
    extract(epoch FROM now() - (SELECT min(processed_at) FROM notification.processed_events)) / 86400 AS age_d,
    s.n_tup_ins AS inserted,
    s.n_tup_del AS deleted,
    (SELECT d.stats_reset FROM pg_catalog.pg_stat_database d WHERE d.datname = current_database()) AS counted_since
FROM pg_catalog.pg_stat_all_tables s
WHERE s.relid = to_regclass('notification.processed_events');
