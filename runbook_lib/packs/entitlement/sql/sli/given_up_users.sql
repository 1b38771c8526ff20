-- question: how many users' notifications were given up in the window?
-- index: scan of notification_dlq, notifications_pkey
-- cost: scan
-- answers: window
SELECT count(*) AS events, count(DISTINCT n.user_id) AS users
FROM notification.notification_dlq d
LEFT JOIN notification.notifications n ON n.notification_id = d.notification_id
WHERE d.created_at >= CAST(:since AS timestamptz) AND d.created_at <= CAST(:as_of AS timestamptz);
