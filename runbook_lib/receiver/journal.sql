-- The receiver's journal, in SQLite.
CREATE TABLE IF NOT EXISTS incidents (
    id TEXT PRIMARY KEY,
    alert TEXT NOT NULL,
    group_key TEXT NOT NULL,
    target TEXT NOT NULL,
    opened REAL NOT NULL,
    closed REAL,
    verdict TEXT
);
CREATE INDEX IF NOT EXISTS incidents_by_group ON incidents (group_key, target, opened);
-- The last reported verdict of each target; NULL if the next one is reported even if it is the same.
CREATE TABLE IF NOT EXISTS reported (
    incident TEXT NOT NULL REFERENCES incidents,
    target TEXT NOT NULL,
    signature TEXT,
    PRIMARY KEY (incident, target)
);
-- Runs of sections (kind firing or resolved: how the alert was) and messages. A message has no key, sections
-- and target; a run has the place ''.
CREATE TABLE IF NOT EXISTS work (
    id INTEGER PRIMARY KEY,
    incident TEXT NOT NULL REFERENCES incidents,
    kind TEXT NOT NULL CHECK (kind IN ('firing', 'resolved', 'message')),
    key TEXT UNIQUE,
    sections TEXT,
    target TEXT,
    place TEXT NOT NULL DEFAULT '',
    rerun INTEGER NOT NULL DEFAULT 0,  -- 1 since the job is run once more
    recurred INTEGER NOT NULL DEFAULT 0,
    about TEXT NOT NULL,  -- JSON: a run's parameters and alert; a message's title, body and status
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    made REAL NOT NULL,
    due REAL NOT NULL,
    started REAL,
    ended REAL,
    problem TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS work_by_state ON work (state, due);
CREATE INDEX IF NOT EXISTS work_by_incident ON work (incident, state);
CREATE TABLE IF NOT EXISTS threads (
    incident TEXT NOT NULL REFERENCES incidents,
    place TEXT NOT NULL,
    thread TEXT NOT NULL,
    PRIMARY KEY (incident, place)
);
-- The work that waits for nothing but its time. An incident's jobs keep their order, also when one is retried, but no
-- job waits for one that is run once more; its messages to one place keep theirs.
CREATE VIEW IF NOT EXISTS due_work AS
SELECT w.*, coalesce((SELECT thread FROM threads WHERE incident = w.incident AND place = w.place), '') AS thread
FROM work AS w WHERE state = 'waiting' AND NOT EXISTS (
    SELECT 1 FROM work
    WHERE incident = w.incident AND place = w.place AND state = 'waiting' AND id < w.id AND rerun = 0
);
CREATE TABLE IF NOT EXISTS alerts (
    incident TEXT NOT NULL REFERENCES incidents,
    fingerprint TEXT NOT NULL,
    job INTEGER NOT NULL REFERENCES work,
    firing INTEGER NOT NULL,
    count INTEGER NOT NULL DEFAULT 1,
    last REAL NOT NULL,
    PRIMARY KEY (incident, fingerprint)
);
CREATE INDEX IF NOT EXISTS alerts_by_job ON alerts (job);
CREATE INDEX IF NOT EXISTS alerts_by_fingerprint ON alerts (fingerprint);
CREATE TABLE IF NOT EXISTS seals (
    incident TEXT NOT NULL REFERENCES incidents,
    seal TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (incident, seal)
);
-- When a receiver was last alive, one row.
CREATE TABLE IF NOT EXISTS alive (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    at REAL NOT NULL
);
CREATE VIEW IF NOT EXISTS incident_states AS
SELECT
    i.*,
    (SELECT count(*) FROM alerts WHERE incident = i.id) AS alerts,
    (SELECT coalesce(sum(count - 1), 0) FROM alerts WHERE incident = i.id) AS repeats,
    coalesce((SELECT seal FROM seals WHERE incident = i.id ORDER BY rowid DESC LIMIT 1), '') AS seal
FROM incidents AS i;
-- The incidents that stay open, since an alert fires or a job is to be done.
CREATE VIEW IF NOT EXISTS unfinished AS
SELECT incident FROM alerts WHERE firing
UNION ALL SELECT incident FROM work WHERE kind <> 'message' AND state IN ('waiting', 'running');
