-- Put the true time into the rows that were written by a clock 60 s ahead (NOTIFICATION_CLOCK_OFFSET in faults.toml).
-- What that clock wrote lies ahead of the moment the database committed it.
UPDATE notification.notifications SET sent_at = sent_at - interval '60 s'
WHERE sent_at > pg_xact_commit_timestamp(xmin) + interval '30 s';

UPDATE notification.notifications
SET locked_at = locked_at - interval '60 s', lease_until = lease_until - interval '60 s'
WHERE locked_at > now() + interval '30 s';

UPDATE notification.notifications AS n
SET created_at = n.created_at - interval '60 s', next_retry_at = n.next_retry_at - interval '60 s'
FROM notification.processed_events AS p
WHERE p.event_id = n.event_id AND p.processed_at > pg_xact_commit_timestamp(p.xmin) + interval '30 s';

UPDATE notification.processed_events SET processed_at = processed_at - interval '60 s'
WHERE processed_at > pg_xact_commit_timestamp(xmin) + interval '30 s';
