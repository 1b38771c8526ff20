-- Which of these events have more than one notification? A match is compared with those that were created about its time.
SELECT e.event_id
FROM unnest(CAST(%(events)s AS uuid[]), CAST(%(users)s AS text[]), CAST(%(matches)s AS timestamptz[]))
    AS e (event_id, user_id, match_at)
WHERE (
    SELECT count(*) FROM notification.notifications n
    WHERE n.user_id = e.user_id AND n.event_id = e.event_id
      AND n.created_at >= coalesce(e.match_at - %(near_s)s * interval '1 second', '-infinity')
      AND n.created_at <= coalesce(e.match_at + %(near_s)s * interval '1 second', 'infinity')
) > 1
