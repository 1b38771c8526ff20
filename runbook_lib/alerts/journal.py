"""What was accepted and what became of it: one SQLite file, written before an alert is answered.

An alert belongs to an incident; an incident's sections are run as jobs; a changed verdict is a message to each place
that messages go to. Whatever is interrupted is found here and done again: a job leaves its artifacts once (see
`Archive.append`), a message is marked as sent right after it was.

One receiver at a time holds the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runbook_lib.alerts import routes
from runbook_lib.alerts.alert import Alert, digest
from runbook_lib.settings import Settings
from runbook_lib.usage import UsageError
from runbook_lib.view import record

#: Seconds that a write waits for somebody else's; then the alert's sender is asked to try again.
BUSY_S = 5.0
#: What the key of a second look ends with; behind it stands the key of the job that came too early to tell.
SECOND_LOOK = "/again"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS incidents (
    id TEXT PRIMARY KEY,
    alert TEXT NOT NULL,
    group_key TEXT NOT NULL,
    target TEXT NOT NULL,
    opened REAL NOT NULL,
    closed REAL,
    concluded REAL,
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
    sent REAL,
    problem TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS messages_by_state ON messages (state, due);
CREATE TABLE IF NOT EXISTS seals (
    incident TEXT NOT NULL REFERENCES incidents,
    seal TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (incident, seal)
);
"""

Kind = Literal["firing", "resolved"]


class JournalError(Exception):
    """The journal cannot be written or read now; one line. Nothing of what was asked for has been kept."""


@dataclass(frozen=True)
class Accepted:
    """What became of a body's alerts."""

    jobs: tuple[int, ...]
    """New ones."""
    counted: int
    """Alerts that were known already."""


@dataclass(frozen=True)
class Job:
    """Sections to run for an incident; times in seconds since 1970."""

    id: int
    key: str
    incident: str
    kind: Kind
    number: int
    """1 for the first of these sections in this incident, and so on."""
    sections: tuple[str, ...]
    target: str
    parameters: dict[str, Any]
    alert: str
    """What is noted in the incident's timeline: the alert in one line."""
    state: str
    attempts: int
    accepted: float
    started: float | None
    ended: float | None
    problem: str


@dataclass(frozen=True)
class Notice:
    """What a place is told, once."""

    id: int
    incident: str
    place: str
    title: str
    body: str
    status: str
    attempts: int
    made: float


@dataclass(frozen=True)
class Incident:
    """What is known of an incident."""

    id: str
    alert: str
    target: str
    opened: float
    closed: float | None
    concluded: float | None
    verdict: dict[str, Any] | None
    """As `record.verdict`; None before the first."""
    alerts: int
    repeats: int
    jobs: tuple[Job, ...]
    seal: str = ""
    """The dossier's head as it was told last; "" before the first."""


class Journal:
    """The file; safe to use from several threads."""

    def __init__(self, file: Path | str) -> None:
        """Open it, or make it. Raises UsageError when that cannot be done."""
        self.file = Path(file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._held = self.file.with_name(f"{self.file.name}.lock").open("a")
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._held.fileno()).st_nlink:
                raise BlockingIOError  # whoever held it takes it away at this moment
        except BlockingIOError:
            self._held.close()
            raise UsageError(f"{self.file} is in use by another receiver: stop it, or name another --journal") from None
        except OSError as e:
            raise UsageError(f"the journal {self.file} cannot be written: {e.strerror}") from None
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(self.file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as e:
            self._let_go()
            raise UsageError(f"the journal {self.file} cannot be used: {e}") from None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()
            self._let_go()

    def _let_go(self) -> None:
        if not self._held.closed:
            Path(self._held.name).unlink(missing_ok=True)
        self._held.close()

    # What is received.

    def accept(self, alerts: Sequence[Alert], config: Settings, now: float) -> Accepted:
        """Keep the alerts of one body, in one transaction; on disk when this returns. Raises JournalError."""
        window_s = config.receiver.window_minutes * 60
        jobs: list[int] = []
        counted = 0
        with self._transaction() as db:
            for target, own in routes.parted(alerts, config):
                incident = self._incident(db, own, target, window_s, now)
                if incident is None:  # an end of what was never seen to begin
                    counted += len(own)
                    continue
                for alert in own:
                    job, new = self._keep(db, alert, config, incident, window_s, now)
                    jobs += [] if job is None else [job]
                    counted += not new
                ended = self._end(db, own, incident, target, window_s, now)
                jobs += [ended] if ended is not None else []
        return Accepted(tuple(dict.fromkeys(jobs)), counted)

    def recover(self, now: float) -> int:
        """What a receiver that died was running waits again; how many jobs. Raises JournalError."""
        with self._transaction() as db:
            return db.execute("UPDATE jobs SET state = 'waiting', due = ? WHERE state = 'running'", (now,)).rowcount

    # Jobs.

    def next_job(self, now: float, busy: Collection[str]) -> Job | None:
        """Start the job that has waited longest, of a target that is not busy. Raises JournalError."""
        with self._transaction() as db:
            row = db.execute(
                # An incident's jobs keep their order, also when one is to be tried again; none waits for a second look.
                "SELECT * FROM jobs AS j WHERE state = 'waiting' AND due <= ?"
                " AND target NOT IN (SELECT value FROM json_each(?)) AND NOT EXISTS"
                " (SELECT 1 FROM jobs WHERE incident = j.incident AND state = 'waiting' AND id < j.id"
                " AND key NOT LIKE ?) ORDER BY id LIMIT 1",
                (now, json.dumps(list(busy)), f"%{SECOND_LOOK}"),
            ).fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, started = ? WHERE id = ?", (now, row["id"])
            )
            return _job(db.execute("SELECT * FROM jobs WHERE id = ?", (row["id"],)).fetchone())

    def concluded(
        self,
        job: Job,
        verdict: dict[str, Any],
        now: float,
        *,
        places: Sequence[str] = (),
        message: tuple[str, str] = ("", ""),
        problem: str = "",
        again: float | None = None,
        second_look: tuple[float, str] | None = None,
        seal: str = "",
    ) -> bool:
        """A job came to its end: keep the verdict; a changed one is a message (title, body) to each place.

        The last one of an incident whose alerts have ended closes it. With `again`, a time, the verdict is there but
        its artifacts could not be kept: people are told, and the job is tried again. With `second_look`, a time and a
        line for the timeline, the same is looked at once more then, as long as an alert fires. The dossier's `seal` is
        kept here, away from it. Returns whether the verdict changed. Raises JournalError.
        """
        signature = record.signature(verdict)
        with self._transaction() as db:
            before = db.execute("SELECT signature FROM incidents WHERE id = ?", (job.incident,)).fetchone()
            changed: bool = before["signature"] != signature
            if again is None:
                done = "UPDATE jobs SET state = 'done', ended = ?, problem = ? WHERE id = ?"
                db.execute(done, (now, problem, job.id))
                if second_look is not None:
                    self._second_look(db, job, *second_look, now)
            else:
                self._wait(db, job, again, problem)
            db.execute(
                "UPDATE incidents SET verdict = ?, signature = ?, concluded = ? WHERE id = ?",
                (json.dumps(verdict, ensure_ascii=False), signature, now, job.incident),
            )
            self._close(db, job.incident, now)
            self._witness(db, job.incident, seal, now)
            if changed:
                self._tell(db, job.incident, places, message, verdict["status"], now)
        return changed

    def again(self, job: Job, due: float, problem: str) -> None:
        """A job could not be done and is tried again at a time. Raises JournalError."""
        with self._transaction() as db:
            self._wait(db, job, due, problem)

    def failed(
        self, job: Job, now: float, problem: str, places: Sequence[str], message: tuple[str, str], seal: str = ""
    ) -> None:
        """A job could not be done and is given up; people are told. Raises JournalError."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET state = 'failed', ended = ?, problem = ? WHERE id = ?", (now, problem, job.id))
            self._close(db, job.incident, now)
            self._witness(db, job.incident, seal, now)
            self._tell(db, job.incident, places, message, "UNKNOWN", now)

    # Messages.

    def due_messages(self, now: float) -> list[Notice]:
        """What is to be sent now, oldest first; of an incident, nothing before what was said before it.

        Raises JournalError.
        """
        rows = self._rows(
            "SELECT * FROM messages AS m WHERE state = 'waiting' AND due <= ? AND NOT EXISTS (SELECT 1 FROM messages"
            " WHERE place = m.place AND incident = m.incident AND state = 'waiting' AND id < m.id) ORDER BY id",
            now,
        )
        return [Notice(**{k: r[k] for k in Notice.__dataclass_fields__}) for r in rows]

    def sent(self, message: Notice, now: float) -> None:
        """A message has reached its place. Raises JournalError."""
        with self._transaction() as db:
            db.execute(
                "UPDATE messages SET state = 'sent', sent = ?, attempts = attempts + 1 WHERE id = ?", (now, message.id)
            )

    def not_sent(self, message: Notice, due: float | None, problem: str) -> None:
        """A message has not reached its place: it is sent again at a time, or (None) given up. Raises JournalError."""
        with self._transaction() as db:
            db.execute(
                "UPDATE messages SET state = ?, due = coalesce(?, due), attempts = attempts + 1, problem = ?"
                " WHERE id = ?",
                ("waiting" if due is not None else "failed", due, problem, message.id),
            )

    # What is there.

    def counts(self) -> dict[str, int]:
        """Jobs and messages by state, such as `jobs_waiting`, and `incidents_open`. Raises JournalError."""
        found = {f"jobs_{s}": 0 for s in ("waiting", "running", "done", "failed")}
        found |= {f"messages_{s}": 0 for s in ("waiting", "sent", "failed")}
        for table in ("jobs", "messages"):
            for row in self._rows(f"SELECT state, count(*) AS n FROM {table} GROUP BY state"):  # noqa: S608
                found[f"{table}_{row['state']}"] = row["n"]
        found["incidents_open"] = self._rows("SELECT count(*) AS n FROM incidents WHERE closed IS NULL")[0]["n"]
        return found

    def incidents(self, limit: int = 50, offset: int = 0) -> list[Incident]:
        """Incidents, newest first. Raises JournalError."""
        rows = self._rows("SELECT * FROM incidents ORDER BY opened DESC, id LIMIT ? OFFSET ?", limit, offset)
        return [self._whole(row) for row in rows]

    def incident(self, id_: str) -> Incident | None:
        """One incident; None where it is not known. Raises JournalError."""
        rows = self._rows("SELECT * FROM incidents WHERE id = ?", id_)
        return self._whole(rows[0]) if rows else None

    def seals(self, incident: str) -> list[tuple[float, str]]:
        """The heads of an incident's dossier as they were told, oldest first. Raises JournalError."""
        return [
            (r["at"], r["seal"]) for r in self._rows("SELECT * FROM seals WHERE incident = ? ORDER BY at", incident)
        ]

    def _whole(self, row: sqlite3.Row) -> Incident:
        jobs = self._rows("SELECT * FROM jobs WHERE incident = ? ORDER BY id", row["id"])
        seen = self._rows(
            "SELECT count(DISTINCT fingerprint) AS alerts, coalesce(sum(count - 1), 0) AS repeats"
            " FROM alerts WHERE incident = ?",
            row["id"],
        )[0]
        return Incident(
            id=row["id"],
            alert=row["alert"],
            target=row["target"],
            opened=row["opened"],
            closed=row["closed"],
            concluded=row["concluded"],
            verdict=json.loads(row["verdict"]) if row["verdict"] else None,
            alerts=seen["alerts"],
            repeats=seen["repeats"],
            jobs=tuple(_job(j) for j in jobs),
            seal=next((seal for _, seal in reversed(self.seals(row["id"]))), ""),
        )

    # Inside a transaction.

    def _incident(
        self, db: sqlite3.Connection, alerts: Sequence[Alert], target: str, window_s: float, now: float
    ) -> str | None:
        """The incident these belong to: the one they name, the group's own if open or just closed, a new one.

        None where all of them end and nothing is open.
        """
        named = alerts[0].incident
        group = "" if named else digest(alerts[0].group)  # what is named is found by its name alone
        found = db.execute(
            "SELECT id FROM incidents WHERE id = ?"
            if named
            else "SELECT id FROM incidents WHERE group_key = ? AND target = ? AND (closed IS NULL OR closed > ?)"
            " ORDER BY opened DESC LIMIT 1",
            (named,) if named else (group, target, now - window_s),
        ).fetchone()
        firing = [a for a in alerts if a.firing]
        if found:
            if firing:
                db.execute("UPDATE incidents SET closed = NULL WHERE id = ?", (found["id"],))
            return str(found["id"])
        if not firing:
            return None
        id_ = routes.incident(firing, target)
        db.execute(
            "INSERT INTO incidents (id, alert, group_key, target, opened) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET closed = NULL",
            (id_, firing[0].name, group, target, now),
        )
        return id_

    def _keep(
        self, db: sqlite3.Connection, alert: Alert, config: Settings, incident: str, window_s: float, now: float
    ) -> tuple[int | None, bool]:
        """The job that an alert leads to, None where it leads to none; and whether it says something new."""
        routed = routes.routed(alert, config)
        sections = ",".join(routed.sections)
        known = db.execute(
            "SELECT a.job, a.firing, j.accepted FROM alerts AS a JOIN jobs AS j ON j.id = a.job"
            " WHERE a.incident = ? AND a.fingerprint = ? AND a.sections = ?",
            (incident, alert.fingerprint, sections),
        ).fetchone()
        if known and (not alert.firing or known["accepted"] > now - window_s):
            db.execute(
                "UPDATE alerts SET count = count + ?, last = ?, firing = ?"
                " WHERE incident = ? AND fingerprint = ? AND sections = ?",
                (int(alert.firing), now, int(alert.firing), incident, alert.fingerprint, sections),
            )
            return None, not alert.firing and bool(known["firing"])
        if not alert.firing:
            return None, False
        parameters = routed.parameters | routes.detection(alert, routed.sections)
        job = self._job_of(db, incident, "firing", sections, routed.target, parameters, alert.line, window_s, now)
        db.execute(
            "INSERT INTO alerts (incident, fingerprint, sections, job, firing, last) VALUES (?, ?, ?, ?, 1, ?)"
            " ON CONFLICT (incident, fingerprint, sections)"
            " DO UPDATE SET job = excluded.job, firing = 1, count = count + 1, last = excluded.last",
            (incident, alert.fingerprint, sections, job, now),
        )
        return job, True

    def _end(
        self, db: sqlite3.Connection, alerts: Sequence[Alert], incident: str, target: str, window_s: float, now: float
    ) -> int | None:
        """The job that looks at the recovery, once the last alert of an open incident has ended."""
        ended = [a for a in alerts if not a.firing]
        firing = db.execute("SELECT 1 FROM alerts WHERE incident = ? AND firing", (incident,)).fetchone()
        is_open = db.execute("SELECT 1 FROM incidents WHERE id = ? AND closed IS NULL", (incident,)).fetchone()
        if not ended or firing or not is_open:
            return None
        dropped = "UPDATE jobs SET state = 'done', ended = ? WHERE incident = ? AND state = 'waiting' AND key LIKE ?"
        db.execute(dropped, (now, incident, f"%{SECOND_LOOK}"))
        last = db.execute("SELECT max(id) AS id FROM jobs WHERE incident = ?", (incident,)).fetchone()["id"]
        job = self._job_of(db, incident, "resolved", routes.LAST, target, {}, ended[-1].line, window_s, now, after=last)
        self._close(db, incident, now)  # where it was looked at already, and nothing else has been since
        return job if job > last else None

    def _job_of(
        self,
        db: sqlite3.Connection,
        incident: str,
        kind: Kind,
        sections: str,
        target: str,
        parameters: dict[str, Any],
        alert: str,
        window_s: float,
        now: float,
        after: int = 0,
    ) -> int:
        """The incident's job of this kind: the one of this window, unless it is before `after`, else a new one."""
        of_its_kind = db.execute(
            "SELECT id, number, target, accepted FROM jobs WHERE incident = ? AND kind = ? AND sections = ?"
            " ORDER BY number DESC",
            (incident, kind, sections),
        ).fetchall()
        last = next((j for j in of_its_kind if j["target"] == target), None)
        if last and last["accepted"] > now - window_s and last["id"] >= after:
            return int(last["id"])
        number = of_its_kind[0]["number"] + 1 if of_its_kind else 1
        made = db.execute(
            "INSERT INTO jobs (key, incident, kind, number, sections, target, parameters, alert, accepted, due)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                f"{incident}/{kind}/{sections}/{number}",
                incident, kind, number, sections, target, json.dumps(parameters), alert, now, now,
            ),
        )  # fmt: skip
        return int(made.lastrowid or 0)

    def _second_look(self, db: sqlite3.Connection, job: Job, due: float, line: str, now: float) -> None:
        """Once: what a second look cannot tell either is a person's."""
        fires = db.execute("SELECT 1 FROM alerts WHERE incident = ? AND firing", (job.incident,)).fetchone()
        if job.kind == "firing" and fires and not job.key.endswith(SECOND_LOOK):
            db.execute(
                "INSERT INTO jobs (key, incident, kind, number, sections, target, parameters, alert, accepted, due)"
                " SELECT ?, incident, kind, number + 1, sections, target, parameters, ?, ?, ? FROM jobs WHERE id = ?"
                " ON CONFLICT (key) DO NOTHING",
                (f"{job.key}{SECOND_LOOK}", line, now, due, job.id),
            )

    def _close(self, db: sqlite3.Connection, incident: str, now: float) -> None:
        """Close an incident none of whose alerts is firing, once there is nothing left to look at."""
        db.execute(
            "UPDATE incidents SET closed = ? WHERE id = ? AND closed IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM alerts WHERE incident = incidents.id AND firing)"
            " AND NOT EXISTS (SELECT 1 FROM jobs WHERE incident = incidents.id AND state IN ('waiting', 'running'))",
            (now, incident),
        )

    def _witness(self, db: sqlite3.Connection, incident: str, seal: str, now: float) -> None:
        if seal:
            db.execute("INSERT OR IGNORE INTO seals (incident, seal, at) VALUES (?, ?, ?)", (incident, seal, now))

    def _wait(self, db: sqlite3.Connection, job: Job, due: float, problem: str) -> None:
        db.execute("UPDATE jobs SET state = 'waiting', due = ?, problem = ? WHERE id = ?", (due, problem, job.id))

    def _tell(
        self,
        db: sqlite3.Connection,
        incident: str,
        places: Sequence[str],
        message: tuple[str, str],
        status: str,
        now: float,
    ) -> None:
        for place in places:
            db.execute(
                "INSERT INTO messages (incident, place, title, body, status, made, due) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (incident, place, *message, status, now, now),
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as e:
                raise JournalError(f"the journal {self.file} cannot be written: {e}") from None

    def _rows(self, question: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            try:
                return self._db.execute(question, values).fetchall()
            except sqlite3.Error as e:
                raise JournalError(f"the journal {self.file} cannot be read: {e}") from None


def _job(row: sqlite3.Row) -> Job:
    plain = {k: row[k] for k in Job.__dataclass_fields__}
    sections, parameters = tuple(row["sections"].split(",")), json.loads(row["parameters"])
    return Job(**(plain | {"sections": sections, "parameters": parameters}))
