-- Move the rows of 0.5.0's tables `jobs` and `messages` into `work`. Foreign keys are off.
ALTER TABLE jobs RENAME TO work;  -- `alerts` refers to `work` from now on
CREATE TABLE jobs AS SELECT * FROM work;
DROP TABLE work;
-- journal.sql
INSERT INTO work (
    id, incident, kind, key, sections, number, target, rerun, recurred, about,
    state, attempts, made, due, started, ended, problem
) SELECT
    id, incident, kind, key, sections, number, target,
    (length(key) - length(replace(key, '/again', ''))) / length('/again'), key LIKE '%/recurred',
    json_object('parameters', json(parameters), 'alert', alert),
    state, attempts, accepted, due, started, ended, problem
FROM jobs;
INSERT INTO work (incident, kind, place, about, state, attempts, made, due, problem) SELECT
    incident, 'message', place, json_object('title', title, 'body', body, 'status', status),
    iif(state = 'sent', 'done', state), attempts, made, due, problem
FROM messages ORDER BY id;
UPDATE incidents SET signature = json_object(target, signature) WHERE signature NOT LIKE '{%';
DROP TABLE jobs;
DROP TABLE messages;
