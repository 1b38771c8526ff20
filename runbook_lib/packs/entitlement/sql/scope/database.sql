-- question: which database of which cluster is this?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT current_database() AS name, CAST(system_identifier AS text) AS cluster
FROM pg_catalog.pg_control_system();
