-- question: which rows are in work, and whose are they?
-- index: scan
-- cost: scan
-- answers: present
SELECT {id} AS id, {state} AS state, {owner} AS owner, {started} AS started, {lease} AS lease, {attempts} AS attempts
FROM {table} q
WHERE {working}
ORDER BY coalesce({lease}, {started}, {created}, {due})
LIMIT 50;
