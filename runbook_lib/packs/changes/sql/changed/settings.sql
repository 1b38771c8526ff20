-- question: what is set for a role, for this database, or for both? Since when is kept nowhere
-- index: catalog
-- cost: catalog
-- answers: present
-- Anybody's secret may be a setting, so that the value leaves the server only where PostgreSQL itself knows the name (an extension's has a dot) and no text fits, or one of those listed.
SELECT
    concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname) AS whose,
    CASE WHEN known.name IS NULL THEN split_part(set_to, '=', 1) ELSE set_to END AS setting
FROM pg_catalog.pg_db_role_setting s
LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
CROSS JOIN unnest(s.setconfig) AS set_to
LEFT JOIN pg_catalog.pg_settings known ON lower(known.name) = lower(split_part(set_to, '=', 1))
    AND known.name NOT LIKE '%.%'
    AND (known.vartype IN ('bool', 'enum', 'integer', 'real') OR known.name IN (
        'DateStyle', 'TimeZone', 'client_encoding', 'createrole_self_grant', 'default_table_access_method',
        'default_tablespace', 'default_text_search_config', 'lc_messages', 'lc_monetary', 'lc_numeric', 'lc_time',
        'restrict_nonsystem_relation_kind', 'search_path', 'temp_tablespaces', 'timezone_abbreviations'
    ))
WHERE (s.setrole = 0 OR r.rolname = :role) AND (s.setdatabase = 0 OR d.datname = current_database())
ORDER BY whose, setting
LIMIT :max_rows;
