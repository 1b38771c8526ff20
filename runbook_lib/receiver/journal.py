"""The receiver's journal: alerts, incidents and their work in one SQLite file.

An alert is committed here before it is answered. An alert belongs to an incident. Work is a job, which runs an
incident's sections, or a message, which tells one notify URL of a changed verdict. After an interruption unfinished
work is found here and done again: a job leaves its artifacts once (see `Archive.append`), and a message is marked as
sent right after it was sent.

Only one receiver at a time can open the file.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from runbook_lib.model.usage import UsageError
from runbook_lib.receiver import routes
from runbook_lib.receiver.alert import Alert, digest
from runbook_lib.receiver.clock import SteadyClock
from runbook_lib.sources.settings import Settings
from runbook_lib.store import record

#: Seconds that a call waits for the calls before it, and then for another process's lock; after that an alert's sender
#: is asked to try again.
BUSY_S = 5.0
#: Seconds after a job's start in which a further alert tells of what the job looks at.
TOGETHER_S = 300.0
#: Seconds between two calls of `end_unrepeated` beyond which no receiver listened, and so no alert was silent.
PAUSE_S = 120.0
#: The version of the file's tables; it stays when a table is added that an older release need not know.
VERSION = 1

_SCHEMA, _MIGRATION = (Path(__file__).with_name(name) for name in ("journal.sql", "journal_0_5_0.sql"))
#: Of the alerts those that fire, of these fingerprints, in open incidents that no alert names.
_FIRING = (
    "firing AND fingerprint IN (SELECT value FROM json_each(?))"
    " AND EXISTS (SELECT 1 FROM incidents WHERE id = alerts.incident AND closed IS NULL AND group_key <> '')"
)
#: The work that is due. An incident's jobs keep their order, also when one is retried, but no job waits for a second
#: run; its messages to one place keep theirs.
_DUE = (
    "SELECT *, coalesce((SELECT thread FROM threads WHERE incident = w.incident AND place = w.place), '') AS thread"
    " FROM work AS w WHERE state = 'waiting' AND due <= ? AND NOT EXISTS (SELECT 1 FROM work"
    " WHERE incident = w.incident AND place = w.place AND state = 'waiting' AND id < w.id AND rerun = 0)"
)

Kind = Literal["firing", "resolved"]
Item = TypeVar("Item", "Job", "Notice")


class JournalError(Exception):
    """The journal cannot be written or read now; one line. Nothing was changed."""


@dataclass(frozen=True)
class Accepted:
    """The result of accepting a body's alerts."""

    jobs: tuple[int, ...]
    """The ids of the new jobs."""
    counted: int
    """The number of alerts that were known already."""


@dataclass(frozen=True)
class Job:
    """One run of sections for an incident; times in seconds since 1970."""

    id: int
    key: str
    incident: str
    kind: Kind
    number: int
    """1 for the first run of these sections in the incident, and so on."""
    sections: tuple[str, ...]
    target: str
    parameters: dict[str, Any]
    alert: str
    """The alert in one line, for the incident's timeline."""
    rerun: int
    """0 for a job of an alert, 1 for its second run, which is made if the first was too early to decide, and so on."""
    recurred: bool
    """Whether this is the first run of a further outage, after the recovery had been checked."""
    state: str
    attempts: int
    made: float
    started: float | None
    ended: float | None
    problem: str


@dataclass(frozen=True)
class Notice:
    """A message to one notify URL."""

    id: int
    incident: str
    place: str
    """The digest of the notify URL (`notify.urls_by_digest`)."""
    title: str
    body: str
    status: str
    attempts: int
    made: float
    thread: str
    """The id of the message there that it replies to; "" for the incident's first."""


@dataclass(frozen=True)
class IncidentState:
    """An incident with its jobs, as the journal holds it."""

    id: str
    alert: str
    target: str
    opened: float
    closed: float | None
    verdict: dict[str, Any] | None
    """The last verdict, as from `record.verdict`; None before the first."""
    alerts: int
    repeats: int
    jobs: tuple[Job, ...]
    seal: str = ""
    """The dossier's last seal; "" before the first."""


class Journal:
    """The journal file; safe to use from several threads. Each method raises JournalError if the file cannot be used.

    `now` and the times compared with it are from `clock`, which is monotonic. Times that people see (an incident's
    `opened` and `closed`, a seal's `at`) are from the machine's clock.
    """

    def __init__(self, file: Path | str, clock: SteadyClock | None = None) -> None:
        """Open or create the file. Raises UsageError if that fails."""
        self.file, self.clock = Path(file), clock or SteadyClock()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            for name in (f"{self.file.name}.lock", self.file.name):  # -wal and -shm have the mode of the file
                self.file.with_name(name).touch(mode=0o600)
            self._lock_file = self.file.with_name(f"{self.file.name}.lock").open("a")
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._lock_file.fileno()).st_nlink:
                raise BlockingIOError  # the other receiver deletes the lock file at this moment
        except BlockingIOError:
            self._lock_file.close()
            raise UsageError(f"{self.file} is in use by another receiver: stop it, or use another --journal") from None
        except OSError as e:
            raise UsageError(f"the journal {self.file} cannot be written: {e.strerror}") from None
        self._lock = threading.Lock()
        try:
            if (version := _read_version(self.file)) > VERSION:
                self._release_lock()
                versions = f"version {version}, this runbook knows {VERSION}"
                raise UsageError(f"the journal {self.file} is newer ({versions}): update, or use another --journal")
            self._db = sqlite3.connect(self.file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            script = _SCHEMA.read_text(encoding="utf-8")
            if self._fetch_first("SELECT 1 FROM sqlite_master WHERE name = 'jobs'"):  # also of 0.5.0
                script = _MIGRATION.read_text(encoding="utf-8").replace("-- journal.sql", script)
            self._db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {VERSION};\nCOMMIT")
            self._db.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error as e:
            self._release_lock()
            raise UsageError(f"the journal {self.file} cannot be used: {e}") from None

    def close(self) -> None:
        """Close the file and release its lock."""
        with self._lock:
            self._db.close()
            self._release_lock()

    def _release_lock(self) -> None:
        if not self._lock_file.closed:
            Path(self._lock_file.name).unlink(missing_ok=True)
        self._lock_file.close()

    # Accepting alerts.

    def accept(self, alerts: Sequence[Alert], config: Settings, now: float) -> Accepted:
        """Store the alerts of one body in one transaction, which is on disk when this returns."""
        window_s = config.receiver.window_minutes * 60
        jobs: list[int | None] = []
        counted = 0
        with self._transaction():
            for target, own in routes.split_by_incident(alerts, config):
                incident = self._find_or_open_incident(own, target, window_s, now)
                if incident is None:  # resolved alerts without an open incident
                    counted += len(own)
                    continue
                if any(alert.firing for alert in own):
                    self._drop_recovery(incident, now)
                for alert in own:
                    job, new = self._record_alert(alert, config, incident, now - window_s, now)
                    jobs.append(job)
                    counted += not new
                jobs += self._add_recovery_jobs([a.line for a in own if not a.firing], incident, now)
                jobs += self._end_elsewhere([a for a in own if not a.firing and not a.incident], now)
        return Accepted(tuple(dict.fromkeys(job for job in jobs if job is not None)), counted)

    def recover(self, now: float) -> int:
        """Set the jobs that a dead receiver was running to waiting; return their number.

        The stored times are from that receiver's clock: a time in the future of this clock is replaced by now. A second
        run keeps at most its planned wait; retries and messages are due at once. When a run took place is then not
        known: it has not seen what is told now.
        """
        with self._transaction():
            self._execute(
                "UPDATE work SET due = min(due, ? + iif(rerun AND attempts = 0, due - made, 0)), made = min(made, ?),"
                " started = iif(started > ?, 0, started) WHERE state = 'waiting' OR made > ? OR started > ?",
                now, now, now, now, now,
            )  # fmt: skip
            self._execute("UPDATE alerts SET last = ? WHERE last > ?", now, now)
            running = [_from_row(Job, row) for row in self._execute("SELECT * FROM work WHERE state = 'running'")]
            for job in running:
                self._postpone_job(job, now, job.problem)
            return len(running)

    def probe(self) -> None:
        """Write a page."""
        with self._transaction():
            self._execute(f"PRAGMA user_version = {VERSION}")

    def trim(self, keep: int) -> None:
        """Delete ended jobs, messages and seals except the newest `keep` of each.

        A closed incident without remaining jobs keeps only its row and its last seal, because its dossier may exist for
        longer. Any other incident keeps its alerts and the last job of each kind, sections and target.
        """
        with self._transaction():
            newest = "SELECT id FROM work WHERE kind <> 'message' ORDER BY id DESC LIMIT ?"
            found = self._execute(
                "SELECT id FROM incidents AS i WHERE closed IS NOT NULL"
                " AND EXISTS (SELECT 1 FROM work WHERE incident = i.id AND kind <> 'message')"
                " AND NOT EXISTS (SELECT 1 FROM work WHERE incident = i.id AND (state = 'waiting' OR id IN"
                f" ({newest})))",
                keep,
            )
            old = json.dumps([row["id"] for row in found])
            self._execute(  # no update: that would leave each row on a page of its own
                "REPLACE INTO incidents (id, alert, group_key, target, opened, closed)"
                " SELECT id, alert, group_key, target, opened, closed FROM incidents"
                " WHERE id IN (SELECT value FROM json_each(?))",
                old,
            )
            for table in ("threads", "alerts", "work"):
                self._execute(f"DELETE FROM {table} WHERE incident IN (SELECT value FROM json_each(?))", old)
            self._execute(
                "DELETE FROM work WHERE state IN ('done', 'failed') AND id NOT IN (SELECT job FROM alerts)"
                f" AND id NOT IN ({newest})"
                " AND id NOT IN (SELECT id FROM work WHERE kind = 'message' ORDER BY id DESC LIMIT ?) AND id NOT IN"
                " (SELECT max(id) FROM work WHERE kind <> 'message' GROUP BY incident, kind, sections, target)",
                keep, keep,
            )  # fmt: skip
            self._execute(
                "DELETE FROM seals WHERE rowid <= (SELECT rowid FROM seals ORDER BY rowid DESC LIMIT 1 OFFSET ?)"
                " AND rowid NOT IN (SELECT max(rowid) FROM seals GROUP BY incident)",
                keep,
            )

    # Jobs.

    def next_job(self, now: float, busy: Collection[str]) -> Job | None:
        """Start the job that has waited longest, of a target that is not busy."""
        with self._transaction():
            row = self._fetch_first(
                f"{_DUE} AND kind <> 'message' AND target NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT 1",
                now, json.dumps(list(busy)),
            )  # fmt: skip
            if row is None:
                return None
            job = replace(_from_row(Job, row), state="running", attempts=row["attempts"] + 1, started=now)
            self._update_work(job.id, state=job.state, attempts=job.attempts, started=now)
            if job.recurred and job.attempts == 1:  # the last reported verdict belongs to an earlier outage
                self._set_reported(job, None)
            return job

    def conclude(
        self,
        job: Job,
        verdict: dict[str, Any] | None,
        now: float,
        *,
        places: Sequence[str] = (),
        message: tuple[str, str] = ("", ""),
        problem: str = "",
        again: float | None = None,
        second_run: tuple[float, str] | None = None,
        seal: str = "",
    ) -> None:
        """End a job with a verdict, None if it is given up; if that is news, queue `message` (title, body) to `places`.

        The last job of an incident whose alerts are all resolved closes the incident. `again` (a time): the artifacts
        could not be archived; the message is queued, and the job is tried again then. `second_run` (a time, and a line
        for the timeline): the sections run again then, while an alert fires, or, after all alerts are resolved, until a
        recovery check is OK. `seal` is the dossier's seal, stored here as a checkpoint. After a job that is given up,
        the next verdict is reported even if it is the same.
        """
        at, status = self.clock.to_wall_clock(now), verdict["status"] if verdict else "UNKNOWN"
        signature = record.signature(verdict) if verdict else None
        with self._transaction():
            if again is not None:
                self._postpone_job(job, again, problem)
            else:
                self._update_work(job.id, state="done" if verdict else "failed", ended=now, problem=problem)
                if second_run is not None:
                    self._add_second_run(job, status, *second_run, now)
            reported = self._fetch_first(
                "SELECT 1 FROM incidents AS i, json_each(signature) WHERE i.id = ? AND key = ? AND value = ?",
                job.incident, job.target, signature,
            )  # fmt: skip
            if verdict:
                stored = json.dumps(verdict, ensure_ascii=False)
                self._execute("UPDATE incidents SET verdict = ? WHERE id = ?", stored, job.incident)
            if places or not verdict:
                self._set_reported(job, signature)
            self._execute(
                "UPDATE incidents SET closed = ? WHERE id = ? AND closed IS NULL"
                " AND NOT EXISTS (SELECT 1 FROM alerts WHERE incident = incidents.id AND firing)"
                " AND NOT EXISTS (SELECT 1 FROM work"
                " WHERE incident = incidents.id AND kind <> 'message' AND state IN ('waiting', 'running'))",
                at, job.incident,
            )  # fmt: skip
            if seal:
                self._keep_seal(job.incident, seal, at)
            about = json.dumps({"title": message[0], "body": message[1], "status": status})
            for place in () if reported else places:
                self._add_work(incident=job.incident, kind="message", place=place, about=about, made=now, due=now)

    def retry(self, job: Job, due: float, problem: str) -> None:
        """Postpone a job that failed; it is tried again at `due`."""
        with self._transaction():
            self._postpone_job(job, due, problem)

    # Messages.

    def readdress(self, places: Sequence[str], now: float) -> int:
        """Address the messages that wait for other places to `places`; return their number.

        A place that has the same message already gets no second one. Without `places` the messages stay.
        """
        if not places:
            return 0
        with self._transaction():
            moved = self._execute(
                "SELECT * FROM work WHERE kind = 'message' AND state = 'waiting'"
                " AND place NOT IN (SELECT value FROM json_each(?)) ORDER BY id",
                json.dumps([*places]),
            ).fetchall()
            same = "SELECT 1 FROM work WHERE (incident, place, about, made) = (?, ?, ?, ?)"
            for row, place in itertools.product(moved, places):
                own = {"incident": row["incident"], "place": place, "about": row["about"], "made": row["made"]}
                if not self._fetch_first(same, *own.values()):
                    self._add_work(kind="message", due=now, **own)
            self._db.executemany("DELETE FROM work WHERE id = ?", [(row["id"],) for row in moved])
            return len(moved)

    def due_messages(self, now: float) -> list[Notice]:
        """Return the messages that are due, oldest first; an incident's messages to one URL keep their order."""
        rows = self._query(f"{_DUE} AND kind = 'message' ORDER BY id", now)
        return [_from_row(Notice, row) for row in rows]

    def threads(self, since: float) -> list[tuple[str, str, str]]:
        """Return incident, place and id of each thread with a message made `since` then, the newest first."""
        rows = self._query(
            "SELECT t.* FROM threads AS t JOIN work USING (incident, place) WHERE made >= ?"
            " GROUP BY incident, place ORDER BY max(made) DESC",
            since,
        )
        return [(r["incident"], r["place"], r["thread"]) for r in rows]

    def mark_sent(self, message: Notice, thread: str = "") -> None:
        """Record that a message was delivered, and its thread, if it has one."""
        with self._transaction():
            self._update_work(message.id, state="done", attempts=message.attempts + 1, ended=self.clock.now())
            if thread:
                self._execute("REPLACE INTO threads VALUES (?, ?, ?)", message.incident, message.place, thread)

    def mark_unsent(self, message: Notice, due: float | None, problem: str) -> None:
        """Record a failed delivery: the message is sent again at `due`, or given up if None.

        After a message that is given up, the incident's next verdict is reported even if it is the same.
        """
        with self._transaction():
            tried = {"attempts": message.attempts + 1, "problem": problem}
            if due is not None:
                self._update_work(message.id, due=due, **tried)
            else:
                self._update_work(message.id, state="failed", ended=self.clock.now(), **tried)
                self._execute("UPDATE incidents SET signature = NULL WHERE id = ?", message.incident)

    # Reading.

    def counts(self) -> dict[str, int]:
        """Count jobs and messages by state (such as `jobs_waiting`), and `incidents_open`."""
        found = {f"jobs_{s}": 0 for s in ("waiting", "running", "done", "failed")}
        found |= {f"messages_{s}": 0 for s in ("waiting", "sent", "failed")}
        rows = self._query(
            "SELECT CASE WHEN kind <> 'message' THEN 'jobs_' || state WHEN state = 'done' THEN 'messages_sent'"
            " ELSE 'messages_' || state END AS name, count(*) AS n FROM work"
            " WHERE kind = 'message' OR state <> 'waiting' OR due <= ? GROUP BY name"  # a second run waits on purpose
            " UNION ALL SELECT 'incidents_open', count(*) FROM incidents WHERE closed IS NULL",
            self.clock.now(),
        )
        return found | {row["name"]: row["n"] for row in rows}

    def incidents(self, limit: int = 50, offset: int = 0) -> list[IncidentState]:
        """Return incidents, newest first."""
        rows = self._query(
            "SELECT i.*, (SELECT count(DISTINCT fingerprint) FROM alerts WHERE incident = i.id) AS alerts,"
            " (SELECT coalesce(sum(count - 1), 0) FROM alerts WHERE incident = i.id) AS repeats,"
            " coalesce((SELECT seal FROM seals WHERE incident = i.id ORDER BY rowid DESC LIMIT 1), '') AS seal"
            " FROM incidents AS i ORDER BY opened DESC, id LIMIT ? OFFSET ?",
            limit, offset,
        )  # fmt: skip
        return [self._incident_state(row) for row in rows]

    def seals(self, incident: str) -> list[tuple[float, str]]:
        """Return the seals of an incident's dossier with their times, oldest first."""
        rows = self._query("SELECT at, seal FROM seals WHERE incident = ? ORDER BY rowid", incident)
        return [(row["at"], row["seal"]) for row in rows]

    def _incident_state(self, row: sqlite3.Row) -> IncidentState:
        jobs = self._query("SELECT * FROM work WHERE incident = ? AND kind <> 'message' ORDER BY id", row["id"])
        plain = {k: row[k] for k in IncidentState.__dataclass_fields__ if k != "jobs"}
        verdict = json.loads(row["verdict"]) if row["verdict"] else None
        return IncidentState(**plain | {"verdict": verdict, "jobs": tuple(_from_row(Job, job) for job in jobs)})

    # Inside a transaction.

    def _find_or_open_incident(self, alerts: Sequence[Alert], target: str, window_s: float, now: float) -> str | None:
        """Return the alerts' incident: the one they name, else their group's open or just closed one, else a new one.

        If the group or the target of an alert changed while it fires, its open incident gets the new ones. Returns None
        if all alerts are resolved and no incident is open.
        """
        named, at = alerts[0].incident, self.clock.to_wall_clock(now)
        group = "" if named else digest(alerts[0].group)  # a named incident is found by its name only
        if named:
            found = self._fetch_first("SELECT id FROM incidents WHERE id = ?", named)
        else:
            found = self._fetch_first(
                "SELECT id FROM incidents WHERE group_key = ? AND target = ?"
                " AND (closed IS NULL OR abs(closed - ?) < ?) ORDER BY closed IS NOT NULL, opened DESC LIMIT 1",
                group, target, at, window_s,
            ) or self._move_incident(alerts, group, target)  # fmt: skip
        firing = [a for a in alerts if a.firing]
        if not firing:
            return str(found["id"]) if found else None
        id_ = str(found["id"]) if found else routes.incident_id(firing, target)
        self._execute(
            "INSERT INTO incidents (id, alert, group_key, target, opened) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET closed = NULL",
            id_, firing[0].title, group, target, at,
        )  # fmt: skip
        return id_

    def _move_incident(self, alerts: Sequence[Alert], group: str, target: str) -> sqlite3.Row | None:
        """Give the open incident in which one of the alerts fires another group and target; None if there is none."""
        found = self._fetch_first(
            f"SELECT id FROM incidents WHERE id IN (SELECT incident FROM alerts WHERE {_FIRING})"
            " ORDER BY opened DESC LIMIT 1",
            _fingerprints(alerts),
        )
        if found:
            self._execute("UPDATE incidents SET group_key = ?, target = ? WHERE id = ?", group, target, found["id"])
        return found

    def _end_elsewhere(self, ended: Sequence[Alert], now: float) -> list[int]:
        """End alerts in the incidents of the groups to which they belonged before; return the jobs that this adds."""
        return self._end_alerts([alert.line for alert in ended], now, _FIRING, _fingerprints(ended))

    def end_unrepeated(self, since: float, line: str, now: float) -> None:
        """End the alerts that were last told before `since`, and check the recovery.

        Of an alert that is silenced when it ends, Alertmanager tells no end. `line` is the new jobs' alert. The time
        since the last call beyond `PAUSE_S` is no silence: no receiver listened, or its journal could not be written.
        """
        with self._transaction():
            alive = self._fetch_first("SELECT at FROM alive")
            if (pause_s := now - alive["at"] - PAUSE_S if alive else now) > 0:
                self._execute("UPDATE alerts SET last = min(last + ?, ?) WHERE firing", pause_s, now)
            self._execute("INSERT OR REPLACE INTO alive (id, at) VALUES (0, ?)", now)
            self._end_alerts([line], now, "firing AND last < ?", since)

    def _end_alerts(self, lines: Sequence[str], now: float, where: str, value: Any) -> list[int]:
        """End the alerts that are found so, and check the recovery; return the jobs that this adds."""
        found = self._execute(f"SELECT DISTINCT incident FROM alerts WHERE {where}", value).fetchall()
        self._execute(f"UPDATE alerts SET firing = 0 WHERE {where}", value)
        return [job for row in found for job in self._add_recovery_jobs(lines, row["incident"], now)]

    def _end_alert(self, alert: Alert, incident: str, now: float) -> bool:
        """Record that an alert does not fire any more, whatever its route was; return whether it fired."""
        ended = self._execute(
            "UPDATE alerts SET firing = 0, last = ? WHERE incident = ? AND fingerprint = ? AND firing",
            now, incident, alert.fingerprint,
        )  # fmt: skip
        return ended.rowcount > 0

    def _record_alert(
        self, alert: Alert, config: Settings, incident: str, since: float, now: float
    ) -> tuple[int | None, bool]:
        """Record an alert; return its job, None if it has one already, and whether the alert is news.

        Its job is the last one of its sections since then, in this outage, also another alert's; else a new one.
        """
        if not alert.firing:
            return None, self._end_alert(alert, incident, now)
        routed = routes.route_of(alert, config)
        sections = ",".join(routed.sections)
        # An alert that fires after the recovery was checked is a further outage.
        check = self._fetch_first("SELECT max(id) AS id FROM work WHERE incident = ? AND kind = 'resolved'", incident)
        last_check = (check and check["id"]) or 0
        known = self._fetch_first(
            "SELECT firing FROM alerts WHERE incident = ? AND fingerprint = ? AND sections = ? AND job > ?",
            incident, alert.fingerprint, sections, last_check,
        )  # fmt: skip
        fires = known is not None and bool(known["firing"])
        self._end_alert(alert, incident, now)  # under another route: it fires under this one
        last = self._fetch_first(  # a second run that was cancelled has looked at nothing
            "SELECT id, made, started FROM work WHERE incident = ? AND kind = 'firing' AND sections = ? AND target = ?"
            " AND id > ? AND NOT (state = 'done' AND started IS NULL) ORDER BY id DESC LIMIT 1",
            incident, sections, routed.target, last_check,
        )  # fmt: skip
        if last and last["made"] > since and (fires or self._covers(last["started"], alert)):
            job = int(last["id"])
            # An alert that has ended beside others and fires anew is news: the job's run saw nothing of that.
            repeats = fires or (known is not None and self._covers(last["started"], alert, within_s=0.0))
        else:
            parameters = routed.parameters | routes.detection_parameters(alert, routed.sections)
            recurred = bool(last_check and not last)
            job = self._add_job(
                incident, "firing", sections, routed.target, parameters, alert.line, now, recurred=recurred
            )
            repeats = False
        self._execute(
            "INSERT INTO alerts (incident, fingerprint, sections, job, firing, last) VALUES (?, ?, ?, ?, 1, ?)"
            " ON CONFLICT (incident, fingerprint, sections)"
            " DO UPDATE SET job = excluded.job, firing = 1, count = count + 1, last = excluded.last",
            incident, alert.fingerprint, sections, job, now,
        )  # fmt: skip
        return None if repeats else job, not repeats

    def _covers(self, started: float | None, alert: Alert, within_s: float = TOGETHER_S) -> bool:
        """Return whether a job that was started then looks at what an alert tells: it began before, or soon after."""
        return started is None or alert.starts_at.timestamp() < self.clock.to_wall_clock(started) + within_s

    def _add_recovery_jobs(self, ended: Sequence[str], incident: str, now: float) -> list[int]:
        """Add a job per target that checks the recovery, when the last alert of an open incident is resolved.

        `ended` are the lines of the alerts that are resolved.
        """
        is_open = self._fetch_first("SELECT 1 FROM incidents WHERE id = ? AND closed IS NULL", incident)
        if not ended or not is_open or self._has_firing_alert(incident):
            return []
        self._execute(
            "UPDATE work SET state = 'done', ended = ?"
            " WHERE incident = ? AND state = 'waiting' AND kind = 'firing' AND rerun",
            now, incident,
        )  # fmt: skip
        # A recovery check that waits or runs stays: an alert may be reported as resolved twice.
        if self._fetch_first(
            "SELECT 1 FROM work WHERE incident = ? AND kind = 'resolved' AND state IN ('waiting', 'running')"
            " AND id > (SELECT max(id) FROM work WHERE incident = ? AND kind = 'firing')",
            incident, incident,
        ):  # fmt: skip
            return []
        targets = self._execute(
            "SELECT target FROM work WHERE incident = ? AND kind = 'firing' GROUP BY target ORDER BY min(id)", incident
        ).fetchall()
        section = routes.recovery_section()
        return [self._add_job(incident, "resolved", section, row["target"], {}, ended[-1], now) for row in targets]

    def _drop_recovery(self, incident: str, now: float) -> None:
        """End the waiting recovery checks when an alert fires; delete those that were never started."""
        waiting = "incident = ? AND kind = 'resolved' AND state = 'waiting'"
        self._execute(f"DELETE FROM work WHERE {waiting} AND attempts = 0", incident)
        self._execute(f"UPDATE work SET state = 'failed', ended = ? WHERE {waiting}", now, incident)

    def _add_job(
        self, incident: str, kind: Kind, sections: str, target: str, parameters: dict[str, Any], alert: str, now: float,
        *, due: float | None = None, rerun: int = 0, recurred: bool = False,
    ) -> int:  # fmt: skip
        """Add a job, due now unless `due` is given, and return its id.

        Its key has a random part: if a journal was lost, the dossier still has artifacts with that journal's keys, and
        a job with the same key would report the verdict of that time.
        """
        last = self._fetch_first(
            "SELECT max(number) AS number FROM work WHERE incident = ? AND kind = ? AND sections = ?",
            incident, kind, sections,
        )  # fmt: skip
        number = ((last and last["number"]) or 0) + 1
        return self._add_work(
            incident=incident, kind=kind, key=f"{incident}/{kind}/{sections}/{number}.{secrets.token_hex(4)}",
            sections=sections, number=number, target=target, rerun=rerun, recurred=recurred, made=now, due=due or now,
            about=json.dumps({"parameters": parameters, "alert": alert}),
        )  # fmt: skip

    def _add_work(self, **values: Any) -> int:
        """Add a row with these columns, and return its id."""
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        added = self._execute(f"INSERT INTO work ({columns}) VALUES ({marks})", *values.values())
        return int(added.lastrowid or 0)

    def _add_second_run(self, job: Job, status: str, due: float, line: str, now: float) -> None:
        """Add a second run: once while an alert fires, then a person must decide; after its end, until it is OK."""
        fires = self._has_firing_alert(job.incident)
        newer = "SELECT 1 FROM work WHERE incident = ? AND target = ? AND id > ? AND state IN ('waiting', 'running')"
        once = job.kind == "firing" and fires and not job.rerun
        recovering = job.kind == "resolved" and status != "OK" and not fires
        if once or (recovering and not self._fetch_first(newer, job.incident, job.target, job.id)):
            self._add_job(
                job.incident, job.kind, ",".join(job.sections), job.target, job.parameters, line, now,
                due=due, rerun=job.rerun + 1,
            )  # fmt: skip

    def _has_firing_alert(self, incident: str) -> bool:
        """Return whether an alert of an incident fires."""
        return bool(self._fetch_first("SELECT 1 FROM alerts WHERE incident = ? AND firing", incident))

    def _keep_seal(self, incident: str, seal: str, at: float) -> None:
        self._execute("INSERT OR IGNORE INTO seals (incident, seal, at) VALUES (?, ?, ?)", incident, seal, at)

    def _postpone_job(self, job: Job, due: float, problem: str) -> None:
        """Let a job wait for another attempt; a recovery check fails if an alert fires again: it must not delay it."""
        if job.kind == "resolved" and self._has_firing_alert(job.incident):
            self._update_work(job.id, state="failed", ended=self.clock.now(), problem=problem)
        else:
            self._update_work(job.id, state="waiting", due=due, problem=problem)

    def _update_work(self, id_: int, **values: Any) -> None:
        """Set these columns of a job or a message."""
        columns = ", ".join(f"{column} = ?" for column in values)
        self._execute(f"UPDATE work SET {columns} WHERE id = ?", *values.values(), id_)

    def _set_reported(self, job: Job, signature: str | None) -> None:
        """Set the target's last reported verdict; None forgets it: the next one is reported even if it is the same."""
        self._execute(
            "UPDATE incidents SET signature = json_patch(coalesce(signature, '{}'), json_object(?, ?)) WHERE id = ?",
            job.target, signature, job.incident,
        )  # fmt: skip

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def _fetch_first(self, question: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row of a question; None if it has none."""
        row: sqlite3.Row | None = self._execute(question, *values).fetchone()
        return row

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Wait for the other threads' calls, and commit what is done within."""
        if not self._lock.acquire(timeout=BUSY_S):
            raise JournalError(f"the journal {self.file} has been in use for {BUSY_S:.0f} s")
        try:
            with self._db:
                self._db.execute(begin)
                yield
        except sqlite3.Error as e:
            raise JournalError(f"the journal {self.file} cannot be used: {e}") from None
        finally:
            self._lock.release()

    def _query(self, question: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a question, in a transaction of its own."""
        with self._transaction("BEGIN"):
            return self._execute(question, *values).fetchall()


def _read_version(file: Path) -> int:
    """Return the version of a journal, 0 for a new one, without a change of the file. Raises sqlite3.Error."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def _fingerprints(alerts: Sequence[Alert]) -> str:
    """Return the fingerprints of alerts as JSON, for a question."""
    return json.dumps([alert.fingerprint for alert in alerts])


def _from_row(item: type[Item], row: sqlite3.Row) -> Item:
    """Return the job or the message of a row of the work."""
    values = {**row, **json.loads(row["about"])}
    if item is Job:
        values |= {"sections": tuple(row["sections"].split(",")), "recurred": bool(row["recurred"])}
    return item(**{name: values[name] for name in item.__dataclass_fields__})
