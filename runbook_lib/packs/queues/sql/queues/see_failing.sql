-- question: which rows failed last, or wait for another try, and with which error?
-- index: scan
-- cost: scan
-- answers: present
SELECT {id} AS id, {state} AS state, {attempts} AS attempts, {finished} AS finished, left(CAST({error} AS text), 200) AS error
FROM {table} q
WHERE {failed} OR ({waiting} AND {attempts} > 0)
ORDER BY coalesce({finished}, {started}, {created}) DESC NULLS LAST
LIMIT 50;
