-- Move a journal of 0.6 into today's tables. Foreign keys are off.
CREATE TABLE moved AS SELECT * FROM alerts;  -- which had a row for each route
DROP TABLE alerts;
-- journal.sql
INSERT INTO alerts (incident, fingerprint, job, firing, count, last)
    SELECT incident, fingerprint, max(job), max(firing), sum(count), max(last) FROM moved
    GROUP BY incident, fingerprint;
DROP TABLE moved;
INSERT INTO reported (incident, target, signature)
    SELECT i.id, s.key, s.value FROM incidents AS i, json_each(i.signature) AS s;
ALTER TABLE incidents DROP COLUMN signature;
ALTER TABLE work DROP COLUMN number;
-- A second run was a job of its own, and had another after it.
UPDATE work SET rerun = 1, started = made, ended = made WHERE rerun AND state = 'waiting' AND attempts = 0;
