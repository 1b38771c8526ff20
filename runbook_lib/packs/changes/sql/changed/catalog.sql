-- question: how are the server, the tables of both services and the rights of their role set up?
-- index: catalog
-- cost: catalog
-- answers: present
-- Definitions of a table wait for its lock, so that one that is locked has one row, '(locked)'. A value may be a secret or a person: settings leave the server by the rule of changed/settings, a literal text in a definition only if it is an upper-case word; *** without quotes, or the masking would make a token of it that differs in each incident.
WITH tables AS MATERIALIZED (
    SELECT c.oid, c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity, concat('table ', n.nspname, '.', c.relname) AS item,
        EXISTS (
            SELECT FROM pg_catalog.pg_locks l
            WHERE l.locktype = 'relation' AND l.relation = c.oid AND l.mode = 'AccessExclusiveLock'
                AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
        ) AS locked
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
),
relations AS MATERIALIZED (SELECT * FROM tables WHERE NOT locked),
found AS (
    SELECT 'server' AS item, s.name AS setting, concat(s.setting, ' ' || s.unit) AS value
    FROM pg_catalog.pg_settings s
    WHERE s.source IN ('configuration file', 'command line', 'environment variable', 'global')
        AND s.name NOT LIKE '%.%'
        AND (s.vartype IN ('bool', 'enum', 'integer', 'real') OR s.name = 'synchronous_standby_names')
    UNION ALL
    SELECT r.item, concat('column ', a.attname),
        concat(format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN ' not null' END,
            ' default ' || pg_get_expr(d.adbin, d.adrelid))
    FROM relations r
    JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
    UNION ALL
    SELECT r.item, concat('constraint ', o.conname), pg_get_constraintdef(o.oid)
    FROM relations r
    JOIN pg_catalog.pg_constraint o ON o.conrelid = r.oid AND o.contype IN ('c', 'f', 'p', 'u', 'x')
    UNION ALL
    SELECT r.item, concat('trigger ', t.tgname),
        concat(pg_get_triggerdef(t.oid), CASE WHEN t.tgenabled = 'D' THEN ' (disabled)' END)
    FROM relations r
    JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT r.item, concat('index ', i.relname),
        concat(pg_get_indexdef(x.indexrelid), CASE WHEN NOT x.indisvalid THEN ' (invalid)' END)
    FROM relations r
    JOIN pg_catalog.pg_index x ON x.indrelid = r.oid
    JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
    UNION ALL
    SELECT r.item, 'owner', CAST(pg_get_userbyid(r.relowner) AS text) FROM relations r
    UNION ALL
    SELECT r.item, 'grants', array_to_string(r.relacl, ' ') FROM relations r WHERE r.relacl IS NOT NULL
    UNION ALL
    SELECT r.item, 'row security', CASE WHEN r.relforcerowsecurity THEN 'enabled, forced' ELSE 'enabled' END
    FROM relations r
    WHERE r.relrowsecurity
    UNION ALL
    SELECT r.item, concat('policy ', p.polname),
        concat(p.polcmd, ' using ' || pg_get_expr(p.polqual, p.polrelid),
            ' check ' || pg_get_expr(p.polwithcheck, p.polrelid))
    FROM relations r
    JOIN pg_catalog.pg_policy p ON p.polrelid = r.oid
    UNION ALL
    SELECT t.item, '(locked)', '' FROM tables t WHERE t.locked
    UNION ALL
    SELECT concat('function ', n.nspname, '.', p.proname, '(', pg_get_function_identity_arguments(p.oid), ')'),
        'source', md5(p.prosrc)
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = ANY (CAST(:schemas AS text[]))
),
rights AS (
    SELECT 'server' AS item, 'version' AS setting, current_setting('server_version') AS value
    UNION ALL
    SELECT concat('role ', r.rolname), attribute.name, attribute.value
    FROM pg_catalog.pg_roles r
    CROSS JOIN LATERAL (VALUES
        ('login', CAST(r.rolcanlogin AS text)), ('superuser', CAST(r.rolsuper AS text)),
        ('connection limit', CAST(r.rolconnlimit AS text)), ('valid until', CAST(r.rolvaliduntil AT TIME ZONE 'UTC' AS text)),
        ('member of', (
            SELECT string_agg(CAST(m.roleid AS regrole)::text, ' ' ORDER BY CAST(m.roleid AS regrole)::text)
            FROM pg_catalog.pg_auth_members m WHERE m.member = r.oid
        ))
    ) AS attribute (name, value)
    WHERE r.rolname = :role AND attribute.value IS NOT NULL
    UNION ALL
    SELECT concat('database ', d.datname), attribute.name, attribute.value
    FROM pg_catalog.pg_database d
    CROSS JOIN LATERAL (VALUES
        ('connections', CAST(d.datallowconn AS text)), ('connection limit', CAST(d.datconnlimit AS text)),
        ('grants', array_to_string(d.datacl, ' '))
    ) AS attribute (name, value)
    WHERE d.datname = current_database() AND attribute.value IS NOT NULL
    UNION ALL
    SELECT concat('schema ', n.nspname), 'grants', array_to_string(n.nspacl, ' ')
    FROM pg_catalog.pg_namespace n
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND n.nspacl IS NOT NULL
    UNION ALL
    SELECT concat('sequence ', n.nspname, '.', c.relname), 'grants', array_to_string(c.relacl, ' ')
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND c.relkind = 'S' AND c.relacl IS NOT NULL
    UNION ALL
    SELECT concat('table ', n.nspname, '.', c.relname), concat('grants on column ', a.attname), array_to_string(a.attacl, ' ')
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND a.attacl IS NOT NULL
)
SELECT source, item, setting,
    translate(
        regexp_replace(
            regexp_replace(value, '''([A-Z_]+)''', concat(chr(1), '\1', chr(1)), 'g'),
            '''[^'']*''', '***', 'g'
        ),
        chr(1), ''''
    ) AS value
FROM (SELECT 'postgres' AS source, f.* FROM found f UNION ALL SELECT 'postgres rights', r.* FROM rights r) AS every
ORDER BY source, item, setting
LIMIT :max_rows;
