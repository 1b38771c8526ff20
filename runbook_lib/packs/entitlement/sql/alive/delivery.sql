-- question: does a session of notification run a statement of the delivery loop at this moment, and what does it wait for?
-- index: catalog
-- cost: catalog
-- answers: present
-- A COMMIT may be the loop's own. A session that waits for its client, or is idle in a transaction, does nothing here.
SELECT
    clock_timestamp() AS at,
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees_others,
    count(*) FILTER (WHERE wait_event_type IS DISTINCT FROM 'Lock') AS working,
    count(*) FILTER (WHERE wait_event_type = 'Lock') AS locked,
    (array_agg(concat_ws(': ', wait_event_type, wait_event) ORDER BY query_start))[1] AS waits_for,
    (array_agg(left(query, 200) ORDER BY query_start))[1] AS statement,
    true AS committed  -- this transaction will be; in older artifacts it was rolled back
FROM pg_catalog.pg_stat_activity
WHERE datname = current_database()
    AND application_name = 'PostgreSQL JDBC Driver'
    AND state = 'active'
    AND wait_event_type IS DISTINCT FROM 'Client'
    AND (query ~* '^\s*(commit|end)\M'
        OR query ~* '^\s*(with|select|update)\M.*\mnotifications\M' AND query !~* 'created_at\s*<');
