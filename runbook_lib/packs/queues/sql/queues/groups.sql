-- question: which of the table's queues have rows that are due, since when, and was one of them taken or ended lately?
-- index: scan
-- cost: scan
-- answers: present
SELECT
    name,
    count(*) FILTER (WHERE is_due) AS due,
    extract(epoch FROM now() - min(since) FILTER (WHERE is_due)) AS oldest_s,
    count(*) FILTER (WHERE is_working) AS working,
    extract(epoch FROM now() - max(moved_at)) AS quiet_s
FROM (
    SELECT
        CAST({group} AS text) AS name,
        {waiting} AND coalesce({due} <= now(), true) AS is_due,
        {working} AS is_working,
        greatest({created}, {due}) AS since,
        greatest({finished}, {started}) AS moved_at
    FROM {table} q
    WHERE {waiting} OR {working} OR greatest({finished}, {started}) >= now() - :within_s * interval '1 s'
) some_rows
GROUP BY name
ORDER BY oldest_s DESC NULLS LAST, name
LIMIT 200;
