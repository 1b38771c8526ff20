-- The receiver's journal, in SQLite.
CREATE TABLE IF NOT EXISTS incidents (
    id TEXT PRIMARY KEY,
    alert TEXT NOT NULL,
    group_key TEXT NOT NULL,
    target TEXT NOT NULL,
    opened REAL NOT NULL,
    closed REAL,
    verdict TEXT,
    signature TEXT  -- JSON: the signature of the last reported verdict by target
);
CREATE INDEX IF NOT EXISTS incidents_by_group ON incidents (group_key, target, opened);
-- Runs of sections (kind firing or resolved: how the alert was) and messages. A message has no key, sections, number
-- and target; a run has the place ''.
CREATE TABLE IF NOT EXISTS work (
    id INTEGER PRIMARY KEY,
    incident TEXT NOT NULL REFERENCES incidents,
    kind TEXT NOT NULL CHECK (kind IN ('firing', 'resolved', 'message')),
    key TEXT UNIQUE,
    sections TEXT,
    number INTEGER,
    target TEXT,
    place TEXT NOT NULL DEFAULT '',
    rerun INTEGER NOT NULL DEFAULT 0,  -- 1 for the second run of a job, and so on
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
CREATE TABLE IF NOT EXISTS alerts (
    incident TEXT NOT NULL REFERENCES incidents,
    fingerprint TEXT NOT NULL,
    sections TEXT NOT NULL,
    job INTEGER NOT NULL REFERENCES work,
    firing INTEGER NOT NULL,
    count INTEGER NOT NULL DEFAULT 1,
    last REAL NOT NULL,
    PRIMARY KEY (incident, fingerprint, sections)
);
CREATE INDEX IF NOT EXISTS alerts_by_job ON alerts (job);
CREATE INDEX IF NOT EXISTS alerts_by_fingerprint ON alerts (fingerprint);
CREATE TABLE IF NOT EXISTS threads (
    incident TEXT NOT NULL REFERENCES incidents,
    place TEXT NOT NULL,
    thread TEXT NOT NULL,
    PRIMARY KEY (incident, place)
);
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
