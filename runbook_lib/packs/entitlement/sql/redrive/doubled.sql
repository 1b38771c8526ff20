-- Which of these events have more than one notification?
SELECT e.event_id
FROM unnest(CAST(%(events)s AS uuid[]), CAST(%(users)s AS text[])) AS e (event_id, user_id)
WHERE (
    SELECT count(*) FROM notification.notifications n WHERE n.user_id = e.user_id AND n.event_id = e.event_id
) > 1
