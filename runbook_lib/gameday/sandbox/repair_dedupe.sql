-- Keep the first row of each event, and put the key back.
-- The locks are in the subscriber's order, which therefore waits instead of ending in a deadlock.
LOCK TABLE notification.processed_events IN ACCESS EXCLUSIVE MODE;
DELETE FROM notification.processed_events AS p USING (
    SELECT ctid, row_number() OVER (PARTITION BY event_id ORDER BY processed_at, ctid) AS nth
    FROM notification.processed_events
) AS numbered
WHERE numbered.ctid = p.ctid AND nth > 1;

LOCK TABLE notification.notifications IN ACCESS EXCLUSIVE MODE;
DELETE FROM notification.notifications AS n USING (
    SELECT ctid, row_number() OVER (PARTITION BY event_id ORDER BY created_at, ctid) AS nth
    FROM notification.notifications
) AS numbered
WHERE numbered.ctid = n.ctid AND nth > 1;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'processed_events_pkey') THEN
        ALTER TABLE notification.processed_events ADD CONSTRAINT processed_events_pkey PRIMARY KEY (event_id);
    END IF;
END
$$;
