-- The receiver's journal, in SQLite.
CREATE TABLE IF NOT EXISTS incidents (
    id TEXT PRIMARY KEY,
    alert TEXT NOT NULL,
    group_key TEXT NOT NULL,
    target TEXT NOT NULL,
    opened REAL NOT NULL,
    closed REAL,
    verdict TEXT,
    signature TEXT
);
CREATE INDEX IF NOT EXISTS incidents_by_group ON incidents (group_key, target, opened);
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    incident TEXT NOT NULL REFERENCES incidents,
    kind TEXT NOT NULL CHECK (kind IN ('firing', 'resolved')),
    number INTEGER NOT NULL,
    sections TEXT NOT NULL,
    target TEXT NOT NULL,
    parameters TEXT NOT NULL,
    alert TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    accepted REAL NOT NULL,
    due REAL NOT NULL,
    started REAL,
    ended REAL,
    problem TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, due);
CREATE INDEX IF NOT EXISTS jobs_by_incident ON jobs (incident, sections);
CREATE TABLE IF NOT EXISTS alerts (
    incident TEXT NOT NULL REFERENCES incidents,
    fingerprint TEXT NOT NULL,
    sections TEXT NOT NULL,
    job INTEGER NOT NULL REFERENCES jobs,
    firing INTEGER NOT NULL,
    count INTEGER NOT NULL DEFAULT 1,
    last REAL NOT NULL,
    PRIMARY KEY (incident, fingerprint, sections)
);
CREATE INDEX IF NOT EXISTS alerts_by_job ON alerts (job);
CREATE INDEX IF NOT EXISTS alerts_by_fingerprint ON alerts (fingerprint);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY,
    incident TEXT NOT NULL REFERENCES incidents,
    place TEXT NOT NULL,
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    status TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    made REAL NOT NULL,
    due REAL NOT NULL,
    problem TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS messages_by_state ON messages (state, due);
CREATE INDEX IF NOT EXISTS messages_by_incident ON messages (incident);
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
