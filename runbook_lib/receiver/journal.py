"""The receiver's journal: alerts, incidents, jobs and messages in one SQLite file.

An alert is committed here before it is answered. An alert belongs to an incident; an incident's sections run as jobs; a
changed verdict is a message to each notify URL. After an interruption the work is found here and done again: a job
leaves its artifacts once (see `Archive.append`), and a message is marked as sent right after it was sent.

Only one receiver at a time can open the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runbook_lib.book.catalog import RECOVERY
from runbook_lib.model.usage import UsageError
from runbook_lib.receiver import routes
from runbook_lib.receiver.alert import Alert, digest
from runbook_lib.receiver.clock import SteadyClock
from runbook_lib.sources.settings import Route, Settings
from runbook_lib.store import record

#: Seconds that a call waits for the calls before it, and then for another process's lock; after that an alert's sender
#: is asked to try again.
BUSY_S = 5.0
#: Suffix of a second run's key. The rest is the key of the first run, which was too early to decide.
SECOND_RUN = "/again"
#: Seconds after a job's start in which a further alert tells of what the job looks at.
TOGETHER_S = 300.0
#: Suffix of the key of a run that a further outage started, after section 6 had checked the recovery.
RECURRED = "/recurred"

_SCHEMA = Path(__file__).with_name("journal.sql")
#: Incidents with what `IncidentState` says of them, except their jobs.
_INCIDENTS = (
    "SELECT i.*, (SELECT count(DISTINCT fingerprint) FROM alerts WHERE incident = i.id) AS alerts,"
    " (SELECT coalesce(sum(count - 1), 0) FROM alerts WHERE incident = i.id) AS repeats,"
    " coalesce((SELECT seal FROM seals WHERE incident = i.id ORDER BY rowid DESC LIMIT 1), '') AS seal"
    " FROM incidents AS i"
)
#: The alerts that fire, of these fingerprints, in open incidents that no alert names.
_FIRING = (
    "alerts AS a JOIN incidents AS i ON i.id = a.incident WHERE firing AND closed IS NULL AND group_key <> ''"
    " AND fingerprint IN (SELECT value FROM json_each(?))"
)

Kind = Literal["firing", "resolved"]


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
    state: str
    attempts: int
    accepted: float
    started: float | None
    ended: float | None
    problem: str

    @property
    def recurred(self) -> bool:
        """Return whether this is the first run of a further outage, after section 6 had checked the recovery."""
        return self.key.endswith(RECURRED)


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
    """The journal file; safe to use from several threads.

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
            self._db = sqlite3.connect(self.file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA.read_text(encoding="utf-8"))
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
        """Store the alerts of one body in one transaction, which is on disk when this returns. Raises JournalError."""
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
        """Set the jobs that a dead receiver was running to waiting; return their number. Raises JournalError.

        The stored times are from that receiver's clock: a time in the future of this clock is replaced by now. A second
        run keeps at most its planned wait; retries and messages are due at once.
        """
        with self._transaction():
            self._execute(
                "UPDATE messages SET due = min(due, ?), made = min(made, ?) WHERE state = 'waiting'", now, now
            )
            self._execute(
                "UPDATE jobs SET due = min(due, ? + iif(attempts = 0, due - accepted, 0)) WHERE state = 'waiting'", now
            )
            self._execute("UPDATE jobs SET accepted = ? WHERE accepted > ?", now, now)
            # When a run took place is not known: it has not seen what is told now.
            self._execute("UPDATE jobs SET started = 0 WHERE started > ?", now)
            self._execute("UPDATE alerts SET last = ? WHERE last > ?", now, now)
            dropped = self._execute(  # as in `_postpone_job`
                "UPDATE jobs SET state = 'failed', ended = ? WHERE state = 'running' AND kind = 'resolved'"
                " AND EXISTS (SELECT 1 FROM alerts WHERE incident = jobs.incident AND firing)",
                now,
            ).rowcount
            again = self._execute("UPDATE jobs SET state = 'waiting', due = ? WHERE state = 'running'", now).rowcount
            return dropped + again

    def probe(self) -> None:
        """Write a page. Raises JournalError."""
        with self._transaction():
            self._execute("PRAGMA user_version = 1")

    def trim(self, keep: int) -> None:
        """Delete ended jobs, messages and seals except the newest `keep` of each. Raises JournalError.

        A closed incident without remaining jobs keeps only its row and its last seal, because its dossier may exist for
        longer. Any other incident keeps its alerts and the last job of each kind, sections and target.
        """
        with self._transaction():
            newest = self._fetch_first("SELECT id FROM jobs ORDER BY id DESC LIMIT 1 OFFSET ?", keep)
            last = newest["id"] if newest else 0
            found = self._execute(
                "SELECT id FROM incidents AS i WHERE closed IS NOT NULL AND EXISTS"
                " (SELECT 1 FROM jobs WHERE incident = i.id) AND NOT EXISTS"
                " (SELECT 1 FROM jobs WHERE incident = i.id AND id > ?) AND NOT EXISTS"
                " (SELECT 1 FROM messages WHERE incident = i.id AND state = 'waiting')",
                last,
            )
            old = json.dumps([row["id"] for row in found])
            self._execute(  # no update: that would leave each row on a page of its own
                "REPLACE INTO incidents (id, alert, group_key, target, opened, closed)"
                " SELECT id, alert, group_key, target, opened, closed FROM incidents"
                " WHERE id IN (SELECT value FROM json_each(?))",
                old,
            )
            for table in ("messages", "threads", "alerts", "jobs"):
                self._execute(f"DELETE FROM {table} WHERE incident IN (SELECT value FROM json_each(?))", old)  # noqa: S608
            self._execute(
                "DELETE FROM jobs WHERE id <= ? AND state IN ('done', 'failed') AND id NOT IN (SELECT job FROM alerts)"
                " AND id NOT IN (SELECT max(id) FROM jobs GROUP BY incident, kind, sections, target)",
                last,
            )
            self._execute(
                "DELETE FROM messages WHERE state IN ('sent', 'failed')"
                " AND id <= (SELECT id FROM messages ORDER BY id DESC LIMIT 1 OFFSET ?)",
                keep,
            )
            self._execute(
                "DELETE FROM seals WHERE rowid <= (SELECT rowid FROM seals ORDER BY rowid DESC LIMIT 1 OFFSET ?)"
                " AND rowid NOT IN (SELECT max(rowid) FROM seals GROUP BY incident)",
                keep,
            )

    # Jobs.

    def next_job(self, now: float, busy: Collection[str]) -> Job | None:
        """Start the job that has waited longest, of a target that is not busy. Raises JournalError."""
        with self._transaction():
            row = self._fetch_first(
                # An incident's jobs keep their order, also when one is retried; but no job waits for a second run.
                "SELECT * FROM jobs AS j WHERE state = 'waiting' AND due <= ?"
                " AND target NOT IN (SELECT value FROM json_each(?)) AND NOT EXISTS"
                " (SELECT 1 FROM jobs WHERE incident = j.incident AND state = 'waiting' AND id < j.id"
                " AND key NOT LIKE ?) ORDER BY id LIMIT 1",
                now, json.dumps(list(busy)), f"%{SECOND_RUN}",
            )  # fmt: skip
            if row is None:
                return None
            job = replace(_job_from_row(row), state="running", attempts=row["attempts"] + 1, started=now)
            self._execute(
                "UPDATE jobs SET state = 'running', attempts = ?, started = ? WHERE id = ?", job.attempts, now, job.id
            )
            if job.recurred and job.attempts == 1:  # the last reported verdict belongs to an earlier outage
                self._forget_last_verdict(job)
            return job

    def conclude(
        self,
        job: Job,
        verdict: dict[str, Any],
        now: float,
        *,
        places: Sequence[str] = (),
        message: tuple[str, str] = ("", ""),
        problem: str = "",
        again: float | None = None,
        second_run: tuple[float, str] | None = None,
        seal: str = "",
    ) -> None:
        """End a job with a verdict; if the verdict changed, queue `message` (title, body) to each of `places`.

        The last job of an incident whose alerts are all resolved closes the incident. `again` (a time): the artifacts
        could not be archived; the message is queued, and the job is tried again then. `second_run` (a time, and a line
        for the timeline): the sections run again then, while an alert fires, or, after all alerts are resolved, until a
        recovery check is OK. `seal` is the dossier's seal, stored here as a checkpoint.

        Raises JournalError.
        """
        signature = record.signature(verdict)
        with self._transaction():
            if again is not None:
                self._postpone_job(job, again, problem)
            else:
                self._execute(
                    "UPDATE jobs SET state = 'done', ended = ?, problem = ? WHERE id = ?", now, problem, job.id
                )
                if second_run is not None:
                    self._add_second_run(job, verdict["status"], *second_run, now)
            reported = self._reported_signatures(job.incident)
            changed = reported.get(job.target) != signature
            if places:
                reported[job.target] = signature
            self._execute(
                "UPDATE incidents SET verdict = ?, signature = ? WHERE id = ?",
                json.dumps(verdict, ensure_ascii=False), json.dumps(reported), job.incident,
            )  # fmt: skip
            self._finish_run(job, places if changed else (), message, verdict["status"], seal, now)

    def retry(self, job: Job, due: float, problem: str) -> None:
        """Postpone a job that failed; it is tried again at `due`. Raises JournalError."""
        with self._transaction():
            self._postpone_job(job, due, problem)

    def fail(
        self, job: Job, now: float, problem: str, places: Sequence[str], message: tuple[str, str], seal: str = ""
    ) -> None:
        """Give up a job and queue a message to each of `places`. Raises JournalError."""
        with self._transaction():
            self._execute("UPDATE jobs SET state = 'failed', ended = ?, problem = ? WHERE id = ?", now, problem, job.id)
            self._forget_last_verdict(job)
            self._finish_run(job, places, message, "UNKNOWN", seal, now)

    # Messages.

    def readdress(self, places: Sequence[str], now: float) -> int:
        """Address the messages that wait for other places to `places`; return their number. Raises JournalError.

        A place that has the same message already gets no second one. Without `places` the messages stay.
        """
        if not places:
            return 0
        known = json.dumps([*places])
        with self._transaction():
            self._execute(
                "INSERT INTO messages (incident, place, title, body, status, made, due)"
                " SELECT incident, value, title, body, status, made, ? FROM messages AS m, json_each(?)"
                " WHERE state = 'waiting' AND place NOT IN (SELECT value FROM json_each(?))"
                " AND NOT EXISTS (SELECT 1 FROM messages WHERE incident = m.incident AND place = value"
                " AND (title, body, made) = (m.title, m.body, m.made))"
                " GROUP BY incident, title, body, made, value ORDER BY min(m.id)",
                now, known, known,
            )  # fmt: skip
            moved = "DELETE FROM messages WHERE state = 'waiting' AND place NOT IN (SELECT value FROM json_each(?))"
            return self._execute(moved, known).rowcount

    def due_messages(self, now: float) -> list[Notice]:
        """Return the messages that are due, oldest first; an incident's messages to one URL keep their order.

        Raises JournalError.
        """
        rows = self._query(
            "SELECT m.*, coalesce(thread, '') AS thread FROM messages AS m LEFT JOIN threads USING (incident, place)"
            " WHERE state = 'waiting' AND due <= ? AND NOT EXISTS (SELECT 1 FROM messages"
            " WHERE place = m.place AND incident = m.incident AND state = 'waiting' AND id < m.id) ORDER BY id",
            now,
        )
        return [Notice(**{k: r[k] for k in Notice.__dataclass_fields__}) for r in rows]

    def threads(self, since: float) -> list[tuple[str, str, str]]:
        """Return incident, place and id of each thread with a message made `since` then, the newest first.

        Raises JournalError.
        """
        rows = self._query(
            "SELECT t.* FROM threads AS t JOIN messages USING (incident, place) WHERE made >= ?"
            " GROUP BY incident, place ORDER BY max(made) DESC",
            since,
        )
        return [(r["incident"], r["place"], r["thread"]) for r in rows]

    def mark_sent(self, message: Notice, thread: str = "") -> None:
        """Record that a message was delivered, and its thread, if it has one. Raises JournalError."""
        with self._transaction():
            self._execute("UPDATE messages SET state = 'sent', attempts = attempts + 1 WHERE id = ?", message.id)
            if thread:
                self._execute("REPLACE INTO threads VALUES (?, ?, ?)", message.incident, message.place, thread)

    def mark_unsent(self, message: Notice, due: float | None, problem: str) -> None:
        """Record a failed delivery: the message is sent again at `due`, or given up if None. Raises JournalError.

        After a message that is given up, the incident's next verdict is reported even if it is the same.
        """
        with self._transaction():
            self._execute(
                "UPDATE messages SET state = ?, due = coalesce(?, due), attempts = attempts + 1, problem = ?"
                " WHERE id = ?",
                "failed" if due is None else "waiting", due, problem, message.id,
            )  # fmt: skip
            if due is None:
                self._execute("UPDATE incidents SET signature = NULL WHERE id = ?", message.incident)

    # Reading.

    def counts(self) -> dict[str, int]:
        """Count jobs and messages by state (such as `jobs_waiting`), and `incidents_open`. Raises JournalError."""
        found = {f"jobs_{s}": 0 for s in ("waiting", "running", "done", "failed")}
        found |= {f"messages_{s}": 0 for s in ("waiting", "sent", "failed")}
        rows = self._query(
            # A second run waits on purpose.
            "SELECT 'jobs_' || state AS name, count(*) AS n FROM jobs"
            " WHERE state != 'waiting' OR due <= ? GROUP BY state"
            " UNION ALL SELECT 'messages_' || state, count(*) FROM messages GROUP BY state"
            " UNION ALL SELECT 'incidents_open', count(*) FROM incidents WHERE closed IS NULL",
            self.clock.now(),
        )
        return found | {row["name"]: row["n"] for row in rows}

    def incidents(self, limit: int = 50, offset: int = 0) -> list[IncidentState]:
        """Return incidents, newest first. Raises JournalError."""
        rows = self._query(f"{_INCIDENTS} ORDER BY opened DESC, id LIMIT ? OFFSET ?", limit, offset)
        return [self._incident_state(row) for row in rows]

    def incident(self, id_: str) -> IncidentState | None:
        """Return one incident, or None if it is not known. Raises JournalError."""
        rows = self._query(f"{_INCIDENTS} WHERE id = ?", id_)
        return self._incident_state(rows[0]) if rows else None

    def seals(self, incident: str) -> list[tuple[float, str]]:
        """Return the seals of an incident's dossier with their times, oldest first. Raises JournalError."""
        rows = self._query("SELECT at, seal FROM seals WHERE incident = ? ORDER BY rowid", incident)
        return [(row["at"], row["seal"]) for row in rows]

    def _incident_state(self, row: sqlite3.Row) -> IncidentState:
        jobs = self._query("SELECT * FROM jobs WHERE incident = ? ORDER BY id", row["id"])
        plain = {k: row[k] for k in IncidentState.__dataclass_fields__ if k != "jobs"}
        verdict = json.loads(row["verdict"]) if row["verdict"] else None
        return IncidentState(**plain | {"verdict": verdict, "jobs": tuple(_job_from_row(j) for j in jobs)})

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
        if found:
            if firing:
                self._execute("UPDATE incidents SET closed = NULL WHERE id = ?", found["id"])
            return str(found["id"])
        if not firing:
            return None
        id_ = routes.incident_id(firing, target)
        self._execute(
            "INSERT INTO incidents (id, alert, group_key, target, opened) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET closed = NULL",
            id_, firing[0].title, group, target, at,
        )  # fmt: skip
        return id_

    def _move_incident(self, alerts: Sequence[Alert], group: str, target: str) -> sqlite3.Row | None:
        """Give the open incident in which one of the alerts fires another group and target; None if there is none."""
        found = self._fetch_first(
            f"SELECT i.id FROM {_FIRING} ORDER BY opened DESC LIMIT 1",  # noqa: S608
            _fingerprints(alerts),
        )
        if found:
            self._execute("UPDATE incidents SET group_key = ?, target = ? WHERE id = ?", group, target, found["id"])
        return found

    def _end_elsewhere(self, ended: Sequence[Alert], now: float) -> list[int]:
        """End alerts in the incidents of the groups to which they belonged before; return the jobs that this adds."""
        where = f"SELECT DISTINCT i.id FROM {_FIRING}"  # noqa: S608
        incidents = [row["id"] for row in self._execute(where, _fingerprints(ended)).fetchall()]
        for incident in incidents:
            for alert in ended:
                self._end_alert(alert, incident, now)
        lines = [alert.line for alert in ended]
        return [job for incident in incidents for job in self._add_recovery_jobs(lines, incident, now)]

    def end_unrepeated(self, since: float, line: str, now: float) -> None:
        """End the alerts that were last told before `since`, and check the recovery. Raises JournalError.

        Of an alert that is silenced when it ends, Alertmanager tells no end. `line` is the new jobs' alert.
        """
        with self._transaction():
            unrepeated = "firing AND last < ?"
            where = f"SELECT DISTINCT incident FROM alerts WHERE {unrepeated}"  # noqa: S608
            incidents = [row["incident"] for row in self._execute(where, since).fetchall()]
            self._execute(f"UPDATE alerts SET firing = 0 WHERE {unrepeated}", since)  # noqa: S608
            for incident in incidents:
                self._add_recovery_jobs([line], incident, now)

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
        """Record an alert; return its job (None for none) and whether the alert is news.

        A job that was accepted before `since` is too old for a further alert.
        """
        if not alert.firing:
            return None, self._end_alert(alert, incident, now)
        routed = routes.route_of(alert, config)
        own = (incident, alert.fingerprint, ",".join(routed.sections))
        known = self._fetch_first(
            "SELECT a.job, a.firing, j.accepted, j.started, j.state FROM alerts AS a JOIN jobs AS j ON j.id = a.job"
            " WHERE a.incident = ? AND a.fingerprint = ? AND a.sections = ?",
            *own,
        )
        # An alert that fires after the recovery was checked is a further outage, not a repeat.
        checks = self._fetch_first(
            "SELECT max(id) AS last FROM jobs WHERE incident = ? AND kind = 'resolved'", incident
        )
        last_check = (checks and checks["last"]) or 0
        repeats = known is not None and known["accepted"] > since and known["job"] > last_check
        # So is one that has ended beside others and fires anew: its run saw nothing of that.
        if known is not None and not known["firing"]:
            repeats = repeats and self._covers(known["started"], alert, within_s=0.0)
        # And a second run that was cancelled has looked at nothing.
        if known is not None and known["state"] == "done" and known["started"] is None:
            repeats = False
        self._end_alert(alert, incident, now)  # under another route: it fires under this one
        if repeats:
            self._execute(
                "UPDATE alerts SET count = count + 1, last = ?, firing = 1"
                " WHERE incident = ? AND fingerprint = ? AND sections = ?",
                now, *own,
            )  # fmt: skip
            return None, False
        job = self._find_or_add_job(alert, routed, incident, last_check, since, now)
        self._execute(
            "INSERT INTO alerts (incident, fingerprint, sections, job, firing, last) VALUES (?, ?, ?, ?, 1, ?)"
            " ON CONFLICT (incident, fingerprint, sections)"
            " DO UPDATE SET job = excluded.job, firing = 1, count = count + 1, last = excluded.last",
            *own, job, now,
        )  # fmt: skip
        return job, True

    def _find_or_add_job(
        self, alert: Alert, routed: Route, incident: str, last_check: int, since: float, now: float
    ) -> int:
        """Return the job that runs an alert's sections in this window and outage, also another alert's; else a new one.

        `last_check` is the last job that checked the recovery, 0 for none: the outage began after it.
        """
        sections = ",".join(routed.sections)
        last = self._fetch_first(
            "SELECT id, accepted, started FROM jobs"
            " WHERE incident = ? AND kind = 'firing' AND sections = ? AND target = ?"
            " AND id > ? AND NOT (state = 'done' AND started IS NULL) ORDER BY number DESC LIMIT 1",
            incident, sections, routed.target, last_check,
        )  # fmt: skip
        if last and last["accepted"] > since and self._covers(last["started"], alert):
            return int(last["id"])
        parameters = routed.parameters | routes.detection_parameters(alert, routed.sections)
        suffix = RECURRED if last_check and not last else ""
        return self._add_job(incident, "firing", sections, routed.target, parameters, alert.line, now, suffix)

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
            "UPDATE jobs SET state = 'done', ended = ?"
            " WHERE incident = ? AND +state = 'waiting' AND kind = 'firing' AND key LIKE ?",
            now, incident, f"%{SECOND_RUN}",
        )  # fmt: skip
        # A recovery check that waits or runs stays: an alert may be reported as resolved twice.
        if self._fetch_first(
            "SELECT 1 FROM jobs WHERE incident = ? AND kind = 'resolved' AND state IN ('waiting', 'running')"
            " AND id > (SELECT max(id) FROM jobs WHERE incident = ? AND kind = 'firing')",
            incident, incident,
        ):  # fmt: skip
            return []
        targets = self._execute(
            "SELECT target FROM jobs WHERE incident = ? AND kind = 'firing' GROUP BY target ORDER BY min(id)", incident
        ).fetchall()
        return [self._add_job(incident, "resolved", RECOVERY, row["target"], {}, ended[-1], now) for row in targets]

    def _drop_recovery(self, incident: str, now: float) -> None:
        """End the waiting recovery checks when an alert fires; delete those that were never started."""
        waiting = "incident = ? AND kind = 'resolved' AND +state = 'waiting'"  # by the incident's index
        self._execute(f"DELETE FROM jobs WHERE {waiting} AND attempts = 0", incident)  # noqa: S608
        self._execute(f"UPDATE jobs SET state = 'failed', ended = ? WHERE {waiting}", now, incident)  # noqa: S608

    def _add_job(
        self, incident: str, kind: Kind, sections: str, target: str, parameters: dict[str, Any], alert: str, now: float,
        suffix: str = "",
    ) -> int:  # fmt: skip
        """Add a job and return its id.

        Its key has a random part: if a journal was lost, the dossier still has artifacts with that journal's keys, and
        a job with the same key would report the verdict of that time.
        """
        before = self._fetch_first(
            "SELECT max(number) AS number FROM jobs WHERE incident = ? AND kind = ? AND sections = ?",
            incident, kind, sections,
        )  # fmt: skip
        number = ((before and before["number"]) or 0) + 1
        key = f"{incident}/{kind}/{sections}/{number}.{secrets.token_hex(4)}{suffix}"
        return self._insert_job(key, incident, kind, number, sections, target, json.dumps(parameters), alert, now, now)

    def _insert_job(self, *values: Any) -> int:
        """Insert a job with the values of the columns below, unless its key exists; return its id."""
        made = self._execute(
            "INSERT INTO jobs (key, incident, kind, number, sections, target, parameters, alert, accepted, due)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
            *values,
        )
        return int(made.lastrowid or 0)

    def _add_second_run(self, job: Job, status: str, due: float, line: str, now: float) -> None:
        """Add a second run: once while an alert fires, then a person must decide; after its end, until it is OK."""
        fires = self._has_firing_alert(job.incident)
        newer = "SELECT 1 FROM jobs WHERE incident = ? AND target = ? AND id > ? AND state IN ('waiting', 'running')"
        once = job.kind == "firing" and fires and not job.key.endswith(SECOND_RUN)
        recovering = job.kind == "resolved" and status != "OK" and not fires
        if once or (recovering and not self._fetch_first(newer, job.incident, job.target, job.id)):
            self._insert_job(
                f"{job.key}{SECOND_RUN}", job.incident, job.kind, job.number + 1, ",".join(job.sections), job.target,
                json.dumps(job.parameters), line, now, due,
            )  # fmt: skip

    def _has_firing_alert(self, incident: str) -> bool:
        """Return whether an alert of an incident fires."""
        return bool(self._fetch_first("SELECT 1 FROM alerts WHERE incident = ? AND firing", incident))

    def _finish_run(
        self, job: Job, places: Sequence[str], message: tuple[str, str], status: str, seal: str, now: float
    ) -> None:
        """Close an incident without firing alerts and unfinished jobs; store the seal, and queue the messages."""
        at = self.clock.to_wall_clock(now)
        self._execute(
            "UPDATE incidents SET closed = ? WHERE id = ? AND closed IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM alerts WHERE incident = incidents.id AND firing)"
            " AND NOT EXISTS (SELECT 1 FROM jobs WHERE incident = incidents.id AND state IN ('waiting', 'running'))",
            at, job.incident,
        )  # fmt: skip
        if seal:
            self._keep_seal(job.incident, seal, at)
        for place in places:
            self._execute(
                "INSERT INTO messages (incident, place, title, body, status, made, due) VALUES (?, ?, ?, ?, ?, ?, ?)",
                job.incident, place, *message, status, now, now,
            )  # fmt: skip

    def _keep_seal(self, incident: str, seal: str, at: float) -> None:
        self._execute("INSERT OR IGNORE INTO seals (incident, seal, at) VALUES (?, ?, ?)", incident, seal, at)

    def _postpone_job(self, job: Job, due: float, problem: str) -> None:
        """Let a job wait for another attempt; a recovery check fails if an alert fires again: it must not delay it."""
        if job.kind == "resolved" and self._has_firing_alert(job.incident):
            state, ended = "failed", self.clock.now()
        else:
            state, ended = "waiting", None
        self._execute(
            "UPDATE jobs SET state = ?, due = ?, ended = ?, problem = ? WHERE id = ?",
            state,
            due,
            ended,
            problem,
            job.id,
        )

    def _forget_last_verdict(self, job: Job) -> None:
        """Forget the target's last reported verdict, so that the next one is reported even if it is the same."""
        others = {t: s for t, s in self._reported_signatures(job.incident).items() if t != job.target}
        self._execute("UPDATE incidents SET signature = ? WHERE id = ?", json.dumps(others), job.incident)

    def _reported_signatures(self, incident: str) -> dict[str, str]:
        """Return the signature of the last reported verdict by target; a journal of 0.5.0 has one for all."""
        row = self._fetch_first(
            "SELECT target, coalesce(signature, '{}') AS stored FROM incidents WHERE id = ?", incident
        )
        if row is None:
            return {}
        stored = str(row["stored"])
        return json.loads(stored) if stored.startswith("{") else {row["target"]: stored}

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def _fetch_first(self, question: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row of a question; None if it has none."""
        row: sqlite3.Row | None = self._execute(question, *values).fetchone()
        return row

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait for the other threads' calls. Raises JournalError if that takes too long."""
        if not self._lock.acquire(timeout=BUSY_S):
            raise JournalError(f"the journal {self.file} has been in use for {BUSY_S:.0f} s")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._locked():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as e:
                raise JournalError(f"the journal {self.file} cannot be written: {e}") from None

    def _query(self, question: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a question, outside of a transaction. Raises JournalError."""
        with self._locked():
            try:
                return self._db.execute(question, values).fetchall()
            except sqlite3.Error as e:
                raise JournalError(f"the journal {self.file} cannot be read: {e}") from None


def _fingerprints(alerts: Sequence[Alert]) -> str:
    """Return the fingerprints of alerts as JSON, for a question."""
    return json.dumps([alert.fingerprint for alert in alerts])


def _job_from_row(row: sqlite3.Row) -> Job:
    plain = {k: row[k] for k in Job.__dataclass_fields__}
    sections, parameters = tuple(row["sections"].split(",")), json.loads(row["parameters"])
    return Job(**(plain | {"sections": sections, "parameters": parameters}))
