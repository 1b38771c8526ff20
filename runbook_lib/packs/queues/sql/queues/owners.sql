-- question: who holds rows, how many, since when, and whose lease has expired?
-- index: scan
-- cost: scan
-- answers: present
SELECT
    CAST({owner} AS text) AS worker,
    count(*) AS working,
    extract(epoch FROM now() - min({started})) AS longest_s,
    extract(epoch FROM now() - max({started})) AS claimed_s,
    count(*) FILTER (WHERE {lease} < now()) AS expired
FROM {table} q
WHERE {working}
GROUP BY CAST({owner} AS text)
ORDER BY expired DESC, longest_s DESC NULLS LAST, working DESC
LIMIT 50;
