-- The questions of probe.py, one row each, with the names of `FlowSample`; a name that several have is summed, ages and
-- rates have one only. `s` and `while` are the length of the sample, in seconds and as an interval.
SELECT
    count(*) FILTER (WHERE created_at > now() - %(while)s) / %(s)s AS created,
    count(*) FILTER (WHERE published_at > now() - %(while)s) / %(s)s AS published,
    count(*) FILTER (WHERE status IN ('PENDING', 'IN_FLIGHT') AND attempt_count > 0) AS retrying,
    count(*) FILTER (WHERE status = 'FAILED') AS lost
FROM entitlement.outbox_events;

SELECT count(*) / %(s)s AS processed FROM notification.processed_events WHERE processed_at > now() - %(while)s;

SELECT
    count(*) FILTER (WHERE status IN ('PENDING', 'PROCESSING') AND attempt_count > 0) AS retrying,
    count(*) FILTER (WHERE status = 'FAILED') AS lost,
    greatest(0, extract(epoch FROM max(greatest(created_at, locked_at, sent_at)) - now())) AS ahead_s
FROM notification.notifications;

-- A letter of what is not FAILED, and what is FAILED without one: only the letters tell, so they count once more.
SELECT count(*) FILTER (WHERE l.event_id IS NULL OR n.status <> 'FAILED') AS lost
FROM notification.notification_dlq AS l FULL JOIN (
    SELECT notification_id, status FROM notification.notifications
    WHERE status = 'FAILED' OR notification_id IN (SELECT notification_id FROM notification.notification_dlq)
) AS n USING (notification_id);

SELECT count(*) AS doubled, count(*) FILTER (WHERE created_at > now() - %(while)s) AS again FROM (
    SELECT created_at, row_number() OVER (PARTITION BY event_id ORDER BY created_at) AS nth
    FROM notification.notifications WHERE created_at > now() - interval '1 hour'
) AS n WHERE nth > 1;

-- From the right that was granted to the notification that was sent, or to where it was given up.
SELECT count(*) AS waiting, coalesce(extract(epoch FROM now() - min(o.created_at)), 0) AS oldest_s
FROM entitlement.outbox_events AS o LEFT JOIN notification.notifications AS n USING (event_id)
WHERE o.created_at > now() - interval '1 hour' AND o.status <> 'FAILED'
AND coalesce(n.status, '') NOT IN ('SENT', 'FAILED');

-- Taken from the outbox long ago, and no notification has come of it: neither retries nor the queue hold it any more.
SELECT count(*) AS missing
FROM entitlement.outbox_events AS o LEFT JOIN notification.notifications AS n USING (event_id)
WHERE o.published_at BETWEEN now() - interval '1 hour' AND now() - interval '1 minute' AND n.event_id IS NULL;
