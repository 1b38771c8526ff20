BEGIN TRANSACTION;
CREATE TABLE alerts (
    incident TEXT NOT NULL REFERENCES incidents,
    fingerprint TEXT NOT NULL,
    sections TEXT NOT NULL,
    job INTEGER NOT NULL REFERENCES work,
    firing INTEGER NOT NULL,
    count INTEGER NOT NULL DEFAULT 1,
    last REAL NOT NULL,
    PRIMARY KEY (incident, fingerprint, sections)
);
INSERT INTO "alerts" VALUES('RECOVERS','1','3',1,0,1,1796000060.0);
INSERT INTO "alerts" VALUES('FIRES','2','4.2',6,0,1,1796000020.0);
INSERT INTO "alerts" VALUES('FIRES','2','3',9,1,1,1796000020.0);
INSERT INTO "alerts" VALUES('Late-19700101T000000-7b18b0e6','3','3',10,1,1,1796000020.0);
CREATE TABLE incidents (
    id TEXT PRIMARY KEY,
    alert TEXT NOT NULL,
    group_key TEXT NOT NULL,
    target TEXT NOT NULL,
    opened REAL NOT NULL,
    closed REAL,
    verdict TEXT,
    signature TEXT  -- JSON: the signature of the last reported verdict by target
);
INSERT INTO "incidents" VALUES('RECOVERS','Late','','main',1796000000.0,NULL,'{"status": "WARNING", "stuck_at": "relay", "failure_modes": []}','{"main":"WARNING relay None"}');
INSERT INTO "incidents" VALUES('FIRES','Db','','main',1796000000.0,NULL,'{"status": "CRITICAL", "stuck_at": "relay", "failure_modes": []}','{"main":"CRITICAL relay None"}');
INSERT INTO "incidents" VALUES('Late-19700101T000000-7b18b0e6','Late','7c4a345722b40acb','main',1796000020.0,NULL,NULL,NULL);
CREATE TABLE seals (
    incident TEXT NOT NULL REFERENCES incidents,
    seal TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (incident, seal)
);
INSERT INTO "seals" VALUES('RECOVERS','seal:RECOVERS:1',1796000005.0);
CREATE TABLE threads (
    incident TEXT NOT NULL REFERENCES incidents,
    place TEXT NOT NULL,
    thread TEXT NOT NULL,
    PRIMARY KEY (incident, place)
);
INSERT INTO "threads" VALUES('FIRES','place','17.1');
CREATE TABLE work (
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
INSERT INTO "work" VALUES(1,'RECOVERS','firing','RECOVERS/firing/3/1.fca1acac','3',1,'main','',0,0,'{"parameters": {"detected_by": "alert", "detected_at": "1970-01-01T00:00:00+00:00"}, "alert": "Late firing: slow"}','done',1,1796000000.0,1796000000.0,1796000000.0,1796000005.0,'');
INSERT INTO "work" VALUES(2,'RECOVERS','message',NULL,NULL,NULL,NULL,'place',0,0,'{"title": "CRITICAL at relay", "body": "the link", "status": "CRITICAL"}','waiting',1,1796000005.0,1796000070.0,NULL,NULL,'refused');
INSERT INTO "work" VALUES(3,'RECOVERS','resolved','RECOVERS/resolved/6/1.33ebe9fa','6',1,'main','',0,0,'{"parameters": {}, "alert": "Late resolved: slow"}','done',1,1796000060.0,1796000060.0,1796000060.0,1796000065.0,'');
INSERT INTO "work" VALUES(4,'RECOVERS','resolved','RECOVERS/resolved/6/2.1d3ffb78','6',2,'main','',1,0,'{"parameters": {}, "alert": "the recovery is checked again"}','waiting',0,1796000065.0,1796000125.0,NULL,NULL,'');
INSERT INTO "work" VALUES(5,'RECOVERS','message',NULL,NULL,NULL,NULL,'place',0,0,'{"title": "WARNING", "body": "b", "status": "WARNING"}','waiting',0,1796000065.0,1796000065.0,NULL,NULL,'');
INSERT INTO "work" VALUES(6,'FIRES','firing','FIRES/firing/4.2/1.904431c6','4.2',1,'main','',0,0,'{"parameters": {}, "alert": "Db firing: slow"}','done',1,1796000000.0,1796000000.0,1796000000.0,1796000010.0,'');
INSERT INTO "work" VALUES(7,'FIRES','firing','FIRES/firing/4.2/2.009e2cc2','4.2',2,'main','',1,0,'{"parameters": {}, "alert": "second run: Db firing"}','waiting',0,1796000010.0,1796000040.0,NULL,NULL,'');
INSERT INTO "work" VALUES(8,'FIRES','message',NULL,NULL,NULL,NULL,'place',0,0,'{"title": "CRITICAL at relay", "body": "the link", "status": "CRITICAL"}','done',1,1796000010.0,1796000010.0,NULL,1796000000.0,'');
INSERT INTO "work" VALUES(9,'FIRES','firing','FIRES/firing/3/1.e8b5f78f','3',1,'main','',0,0,'{"parameters": {"detected_by": "alert", "detected_at": "1970-01-01T00:00:00+00:00"}, "alert": "Db firing: slow"}','running',1,1796000020.0,1796000020.0,1796000020.0,NULL,'');
INSERT INTO "work" VALUES(10,'Late-19700101T000000-7b18b0e6','firing','Late-19700101T000000-7b18b0e6/firing/3/1.4282824d','3',1,'main','',0,0,'{"parameters": {"detected_by": "alert", "detected_at": "1970-01-01T00:00:00+00:00"}, "alert": "Late firing: slow"}','waiting',0,1796000020.0,1796000020.0,NULL,NULL,'');
CREATE INDEX incidents_by_group ON incidents (group_key, target, opened);
CREATE INDEX work_by_state ON work (state, due);
CREATE INDEX work_by_incident ON work (incident, state);
CREATE INDEX alerts_by_job ON alerts (job);
CREATE INDEX alerts_by_fingerprint ON alerts (fingerprint);
COMMIT;
PRAGMA user_version = 1;
