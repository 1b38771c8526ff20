-- question: which migrations has Flyway run in schema notification, newest first?
-- index: flyway_schema_history_notification_pk
-- cost: index
-- answers: present
SELECT version, description, CAST(date_trunc('second', installed_on) AS text) AS installed_on, success  -- of no time zone
FROM notification.flyway_schema_history_notification
ORDER BY installed_rank DESC
LIMIT :max_rows;
