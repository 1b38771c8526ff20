-- question: how many rows may be taken now, wait for a later time or are in work, and for how long?
-- index: scan
-- cost: scan
-- answers: present
SELECT
    count(*) FILTER (WHERE is_due) AS due,
    count(*) FILTER (WHERE is_waiting AND NOT is_due) AS later,
    count(*) FILTER (WHERE is_waiting AND tries > 0) AS tried,
    extract(epoch FROM now() - min(since) FILTER (WHERE is_due)) AS oldest_s,
    count(*) FILTER (WHERE NOT is_waiting) AS working,
    count(*) FILTER (WHERE NOT is_waiting AND overdue_s >= :overdue_s) AS held,
    max(overdue_s) FILTER (WHERE NOT is_waiting) AS overdue_s,
    count(*) FILTER (WHERE NOT is_waiting AND overdue_s IS NULL) AS undated,
    -- A row is in work for as long as it exists, at most.
    extract(epoch FROM now() - min(since) FILTER (WHERE NOT is_waiting AND overdue_s IS NULL)) AS at_most_s,
    extract(epoch FROM now() - max(started_at) FILTER (WHERE NOT is_waiting)) AS claimed_s
FROM (
    SELECT
        coalesce({waiting}, false) AS is_waiting,
        {waiting} AND coalesce({due} <= now(), true) AS is_due,
        -- A time ahead of now, by another clock, is no age.
        CASE WHEN greatest({created}, {due}) > now() THEN now() ELSE greatest({created}, {due}) END AS since,
        {started} AS started_at,
        {attempts} AS tries,
        -- For how long a row is held beyond its lease, or beyond the longest time of a row that is well.
        coalesce(
            extract(epoch FROM now() - {lease}),
            extract(epoch FROM now() - {started}) - CAST(:longest_s AS numeric)
        ) AS overdue_s
    FROM {table} q
    WHERE {waiting} OR {working}
) open_rows;
