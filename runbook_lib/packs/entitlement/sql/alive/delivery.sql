-- question: does a session of notification run a statement of the delivery loop at this moment, and what does it wait for? In how many open transactions does the server wait for a service's next statement?
-- index: catalog
-- cost: catalog
-- answers: present
-- A COMMIT may be the loop's own. A session that waits for its client, or is idle in a transaction, does nothing here.
WITH driver AS (
    SELECT
        query, query_start, wait_event_type, wait_event,
        state = 'active' AND wait_event_type IS DISTINCT FROM 'Client'
            AND (query ~* '^\s*(commit|end)\M'
                OR query ~* '^\s*(with|select|update)\M.*\mnotifications\M' AND query !~* 'created_at\s*<') AS of_loop,
        state = 'idle in transaction' AND state_change < clock_timestamp() - make_interval(secs => :waited) AS opened
    FROM pg_catalog.pg_stat_activity
    WHERE datname = current_database()
        AND application_name = 'PostgreSQL JDBC Driver'
)
SELECT
    clock_timestamp() AS at,
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees_others,
    count(*) FILTER (WHERE of_loop AND wait_event_type IS DISTINCT FROM 'Lock') AS working,
    count(*) FILTER (WHERE of_loop AND wait_event_type = 'Lock') AS locked,
    (array_agg(concat_ws(': ', wait_event_type, wait_event) ORDER BY query_start) FILTER (WHERE of_loop))[1] AS waits_for,
    (array_agg(left(query, 200) ORDER BY query_start) FILTER (WHERE of_loop))[1] AS statement,
    true AS committed,  -- this transaction will be; in older artifacts it was rolled back
    count(*) FILTER (WHERE opened) AS opened,
    count(*) FILTER (WHERE opened AND query ~* '\m(outbox_events|entitlements|idempotency_keys|entitlement_audit)\M')
        AS of_entitlement,
    count(*) FILTER (WHERE opened AND query ~* '\m(notifications|processed_events|notification_dlq)\M') AS of_notification
FROM driver;
