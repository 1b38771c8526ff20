-- What of the applications' tables can be turned: kind, item, value, the words that name it, and the statements that turn it. `tables` and `columns` are what all rows are made from.
WITH tables AS (
    SELECT oid, oid::regclass::text AS t, relname, pg_get_userbyid(relowner) AS role FROM pg_class
    WHERE relkind = 'r' AND relnamespace IN ('entitlement'::regnamespace, 'notification'::regnamespace)
),
columns AS (
    SELECT tables.*, attname, pg_get_expr(adbin, adrelid) AS initial, (
        SELECT string_agg(quote_ident(o.attname), ', ') FROM pg_attribute AS o
        WHERE o.attrelid = a.attrelid AND o.attnum > 0 AND NOT o.attisdropped AND o.attname <> a.attname
    ) AS others
    FROM tables JOIN pg_attribute AS a ON a.attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
    LEFT JOIN pg_attrdef ON adrelid = a.attrelid AND adnum = attnum
)
SELECT 'privilege' AS kind, t AS item, format('REVOKE %s', p) AS value, ARRAY[relname, 'grants'] AS words,
    ARRAY[format('REVOKE %s ON %s FROM %I', p, t, role)] AS do
FROM tables, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p
UNION ALL
SELECT 'privilege', format('%s.%s', t, attname), format('REVOKE %s', p), ARRAY[relname, 'grants'],
    ARRAY[format('REVOKE %s ON %s FROM %I', p, t, role), format('GRANT %s (%s) ON %s TO %I', p, others, t, role)]
FROM columns, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p WHERE others IS NOT NULL
UNION ALL
SELECT 'schema', t, 'drop constraint ' || conname, ARRAY[conname],
    ARRAY[format('ALTER TABLE %s DROP CONSTRAINT %I', t, conname)]
FROM tables JOIN pg_constraint AS c ON conrelid = tables.oid
UNION ALL
SELECT 'schema', t, 'drop index ' || indexrelid::regclass, ARRAY[i.relname],
    ARRAY[format('DROP INDEX %s', indexrelid::regclass)]
FROM tables JOIN pg_index ON indrelid = tables.oid JOIN pg_class AS i ON i.oid = indexrelid
WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
UNION ALL
SELECT 'schema', t, 'drop trigger ' || tgname, ARRAY[tgname], ARRAY[format('DROP TRIGGER %I ON %s', tgname, t)]
FROM tables JOIN pg_trigger AS g ON tgrelid = tables.oid AND NOT tgisinternal
UNION ALL
SELECT 'schema', format('%s.%s', t, attname), 'drop default', ARRAY[attname, 'default'],
    ARRAY[format('ALTER TABLE %s ALTER %I DROP DEFAULT', t, attname)]
FROM columns WHERE initial IS NOT NULL
UNION ALL
SELECT 'schema', format('%s.%s', t, attname), 'add check', ARRAY['knob_check'],
    ARRAY[format('ALTER TABLE %s ADD CONSTRAINT knob_check CHECK (length(%I::text) < 8) NOT VALID', t, attname)]
FROM columns
UNION ALL
SELECT 'schema', t, 'add column', ARRAY['knob_column'],
    ARRAY[
        format('ALTER TABLE %s ADD knob_column int NOT NULL DEFAULT 0', t),
        format('ALTER TABLE %s ALTER knob_column DROP DEFAULT', t)
    ]
FROM tables
UNION ALL
SELECT 'schema', t, format('add trigger before %s that returns %s', op, result), ARRAY['knob_trigger'],
    ARRAY[
        'CREATE FUNCTION public.knob_trigger() RETURNS trigger LANGUAGE plpgsql AS '
        || format('''BEGIN RETURN %s; END''', result),
        format('CREATE TRIGGER knob_trigger BEFORE %s ON %s FOR EACH ROW EXECUTE FUNCTION public.knob_trigger()', op, t)
    ]
FROM tables, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) AS op, unnest(ARRAY['NEW', 'OLD', 'NULL']) AS result
UNION ALL
-- The server settings of autovacuum are also parameters of a table, mostly; the server refuses the others.
SELECT 'schema', t, format('set parameter %s = %s', name, v), ARRAY[relname, name],
    ARRAY[format('ALTER TABLE %s SET (%s = %s)', t, name, v)]
FROM tables, pg_settings, unnest(CASE vartype WHEN 'bool' THEN ARRAY['false'] ELSE ARRAY[min_val, max_val] END) AS v
WHERE category = 'Autovacuum'
ORDER BY kind, item, value;
