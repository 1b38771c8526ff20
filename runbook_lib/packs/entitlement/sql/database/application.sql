-- question: may the applications' role do its work: log in, write, and reach every table it needs?
-- index: catalog
-- cost: catalog
-- answers: present
SELECT
    wanted.role,
    r.oid IS NOT NULL AS there,
    coalesce(r.rolcanlogin, false) AS can_login,
    coalesce(r.rolvaliduntil < now(), false) AS expired,
    nullif(r.rolconnlimit, -1) AS connection_limit,
    (SELECT count(*) FROM pg_stat_activity a WHERE a.usename = wanted.role AND a.datname = current_database()) AS sessions,
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees_others,
    -- What is set for this role in this database goes before what is set for the role, and that before the database's.
    (SELECT coalesce(substring(setting FROM '=(.*)'), '')
     FROM pg_catalog.pg_db_role_setting s, unnest(s.setconfig) AS setting
     WHERE setting LIKE 'default_transaction_read_only=%'
         AND s.setrole IN (0, r.oid)
         AND s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
     ORDER BY s.setrole <> 0 AND s.setdatabase <> 0 DESC, s.setrole <> 0 DESC
     LIMIT 1) AS read_only,
    (SELECT string_agg(needed.privilege || ' on ' || needed.name, ', ' ORDER BY needed.name, needed.privilege)
     FROM (
         SELECT n.nspname || '.' || c.relname AS name, c.oid, n.oid AS schema, p.privilege
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE')) AS p(privilege)
         WHERE n.nspname || '.' || c.relname IN (
             'entitlement.entitlements', 'entitlement.outbox_events', 'notification.notifications'
         ) OR (n.nspname || '.' || c.relname IN (
             'entitlement.entitlement_audit', 'notification.processed_events', 'notification.notification_dlq'
         ) AND p.privilege <> 'UPDATE')
     ) needed
     WHERE r.oid IS NOT NULL
         AND NOT (has_schema_privilege(r.oid, needed.schema, 'USAGE') AND has_any_column_privilege(r.oid, needed.oid, needed.privilege))
    ) AS lacks
FROM (SELECT CAST(:role AS name) AS role) wanted
LEFT JOIN pg_catalog.pg_roles r ON r.rolname = wanted.role;
