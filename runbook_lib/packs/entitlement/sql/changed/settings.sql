-- question: what is set for a role, for this database, or for both? Since when is kept nowhere
-- index: catalog
-- cost: catalog
-- answers: present
-- column: whose text
-- column: setting text
SELECT
    concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname) AS whose,
    setting
FROM pg_catalog.pg_db_role_setting s
LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
CROSS JOIN unnest(s.setconfig) AS setting
WHERE (s.setrole = 0 OR r.rolname = :role) AND (s.setdatabase = 0 OR d.datname = current_database())
ORDER BY whose, setting
LIMIT :max_rows;
