-- question: of each service, which sessions are there, when did it last say something, and when did its loop? How many transactions of this database have ended well, and how many were rolled back, until now?
-- index: catalog
-- cost: catalog
-- answers: present
WITH others AS (
    SELECT
        application_name = 'PostgreSQL JDBC Driver' AS driver, state, wait_event_type, client_addr, query,
        -- Where no such role exists, the services log in as another.
        usename = (SELECT coalesce(max(rolname), usename) FROM pg_catalog.pg_roles WHERE rolname = CAST(:role AS name)) AS ours,
        greatest(extract(epoch FROM clock_timestamp() - greatest(query_start, state_change)), 0) AS age,
        extract(epoch FROM clock_timestamp() - backend_start) AS since,
        CASE
            WHEN query ~* '\m(outbox_events|entitlements|idempotency_keys|entitlement_audit)\M'
                OR query ~* 'search_path\s*(=|to)\s*[''"]*entitlement\M' THEN 'entitlement'
            WHEN query ~* '\m(notifications|processed_events|notification_dlq|notification_nats_dlq)\M'
                OR query ~* 'search_path\s*(=|to)\s*[''"]*notification\M' THEN 'notification'
            -- Another application with this database, role and driver.
            WHEN query ~* '\m(from|into|update|join)\M|search_path\s*(=|to)' THEN 'other'
        END AS named
    FROM pg_catalog.pg_stat_activity
    WHERE datname = current_database()
      AND pid <> pg_backend_pid()
      AND coalesce(application_name, '') NOT LIKE 'runbook/%'
), placed AS (
    -- One that shows only COMMIT is of the service that has all other sessions from there, if one has.
    SELECT *, coalesce(
        named,
        CASE WHEN min(known) OVER here = max(known) OVER here THEN min(known) OVER here
            WHEN count(known) OVER here = 0 THEN min(named) OVER here END,
        'either'
    ) AS service
    FROM (SELECT *, nullif(named, 'other') AS known FROM others) seen
    WHERE driver
    WINDOW here AS (PARTITION BY client_addr)
), transactions AS (
    SELECT
        xact_commit AS commits, xact_rollback AS rollbacks, clock_timestamp() AS at,
        -- Registrations are never updated, so a dead one was rolled back, or deleted by the clean-up.
        coalesce((SELECT n_dead_tup FROM pg_catalog.pg_stat_all_tables
                  WHERE schemaname = 'notification' AND relname = 'processed_events'), 0) AS refused
    FROM pg_catalog.pg_stat_database
    WHERE datname = current_database()
), seen AS (
    SELECT
        wanted.service,
        count(placed.driver) AS sessions,
        count(*) FILTER (WHERE placed.state = 'active') AS working,
        count(*) FILTER (WHERE placed.wait_event_type = 'Lock') AS waiting,
        max(placed.since) AS since,
        min(placed.age) AS newest,
        -- Claims, marks and counts of a loop; not what the API or the subscriber inserts, nor the clean-up.
        min(placed.age) FILTER (
            WHERE placed.query ~* '^\s*(with|select|update)\M'
              AND placed.query ~* CASE wanted.service WHEN 'entitlement' THEN '\moutbox_events\M' ELSE '\mnotifications\M' END
              AND placed.query !~* 'created_at\s*<'
        ) AS poll,
        -- What may be a service under another driver's name: who logs in as somebody else is none.
        (SELECT count(*) FROM others WHERE NOT driver AND named <> 'other' AND ours) AS strangers,
        (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
            OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_others,
        min(placed.since) FILTER (WHERE placed.ours) AS newest_login
    FROM (VALUES ('entitlement'), ('notification'), ('either')) AS wanted (service)
    LEFT JOIN placed ON placed.service = wanted.service
    GROUP BY wanted.service
)
SELECT seen.*, commits, rollbacks, at, refused
FROM seen CROSS JOIN transactions
ORDER BY service;
