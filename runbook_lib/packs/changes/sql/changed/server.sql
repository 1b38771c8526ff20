-- question: since when does this server run, and when has it read its configuration last?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT pg_postmaster_start_time() AS started_at, pg_conf_load_time() AS loaded_at;
