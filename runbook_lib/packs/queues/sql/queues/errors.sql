-- question: which errors do rows have that failed lately, or that wait for another try?
-- index: scan
-- cost: scan
-- answers: present
SELECT
    text,
    count(*) FILTER (WHERE has_failed AND at IS NOT NULL) AS failed,
    count(*) FILTER (WHERE has_failed AND at IS NULL) AS undated,
    count(*) FILTER (WHERE NOT has_failed) AS tried,
    max(tries) AS tries,
    extract(epoch FROM now() - max(at) FILTER (WHERE has_failed)) AS last_s
FROM (
    SELECT
        left(CAST({error} AS text), 300) AS text,
        coalesce({failed}, false) AS has_failed,
        {attempts} AS tries,
        coalesce({finished}, {started}) AS at
    FROM {table} q
    WHERE ({failed}
            AND coalesce(coalesce({finished}, {started}) >= now() - :within_s * interval '1 s', true))
        OR ({waiting} AND {attempts} > 0)
) failing
GROUP BY text
ORDER BY count(*) DESC, text
LIMIT 200;
