"""The receiver's journal: alerts, incidents and their work in one SQLite file.

An alert is committed here before it is answered. An alert belongs to an incident. Work is a job, which runs an
incident's sections, or a message, which tells one notify URL of a changed verdict. After an interruption unfinished
work is found here and done again: a job leaves its artifacts once (see `Archive.append`), and a message is marked as
sent right after it was sent.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runbook_lib.receiver import routes
from runbook_lib.receiver.alert import Alert, digest
from runbook_lib.receiver.clock import SteadyClock
from runbook_lib.receiver.database import JournalFile
from runbook_lib.receiver.work import Accepted, IncidentState, Job, Kind, Notice, from_row, incident_from_rows
from runbook_lib.sources.settings import Settings
from runbook_lib.store import record

#: Seconds after a job's start in which a further alert tells of what the job looks at.
TOGETHER_S = 300.0
#: Seconds between two calls of `end_unrepeated` beyond which no receiver listened, and so no alert was silent.
PAUSE_S = 120.0

#: An alert by its fingerprint, whatever its group and route were: in the incident that it names, or in those of groups.
_SAME = (
    "fingerprint = ? AND EXISTS"
    " (SELECT 1 FROM incidents WHERE id = alerts.incident AND iif(? = '', group_key <> '', id = ?))"
)
_TRIM = Path(__file__).with_name("trim.sql")


class Journal(JournalFile):
    """The journal's alerts, incidents and work.

    `now` and the times compared with it are from `clock`, which is monotonic. Times that people see (an incident's
    `opened` and `closed`, a seal's `at`) are from the machine's clock.
    """

    def __init__(self, file: Path | str, clock: SteadyClock | None = None) -> None:
        """Open or create the file. Raises UsageError if that fails."""
        super().__init__(file)
        self.clock = clock or SteadyClock()

    # Accepting alerts.

    def accept(self, alerts: Sequence[Alert], config: Settings, now: float) -> Accepted:
        """Store the alerts of one body in one transaction, which is on disk when this returns."""
        window_s = config.receiver.window_minutes * 60
        jobs, counted = list[int](), 0
        with self._transaction():
            for target, own in routes.split_by_incident(alerts, config):
                incident, ended = "", dict[str, str]()
                if any(alert.firing for alert in own):
                    incident = self._open_incident(own, target, window_s, now)
                    self._cancel_jobs(incident, "kind = 'resolved'", now)
                for alert in own:
                    if alert.firing:
                        job, is_news = self._record_alert(alert, config, incident, now - window_s, now)
                        jobs += [job] if job else []
                    else:
                        ended_in = self._end_alerts(now, _SAME, alert.fingerprint, alert.incident, alert.incident)
                        ended, is_news = ended | dict.fromkeys(ended_in, alert.line), bool(ended_in)
                    counted += not is_news
                for name, line in ended.items():
                    jobs += self._add_recovery_jobs(line, name, now)
        return Accepted(tuple(dict.fromkeys(jobs)), counted)

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
            for incident in self._end_alerts(now, "last < ?", since):
                self._add_recovery_jobs(line, incident, now)

    def recover(self, now: float) -> int:
        """Set the jobs that a dead receiver was running to waiting; return their number.

        The stored times are from that receiver's clock: a time in the future of this clock is replaced by now. A job
        that is run once more keeps at most its planned wait; retries and messages are due at once. When a run took
        place is then not known: it has not seen what is told now.
        """
        with self._transaction():
            self._execute(
                "UPDATE work SET due = min(due, ? + iif(rerun AND attempts = 0, due - ended, 0)), made = min(made, ?),"
                " started = iif(started > ?, 0, started) WHERE state = 'waiting' OR made > ? OR started > ?",
                now, now, now, now, now,
            )  # fmt: skip
            self._execute("UPDATE alerts SET last = ? WHERE last > ?", now, now)
            running = [from_row(Job, row) for row in self._execute("SELECT * FROM work WHERE state = 'running'")]
            for job in running:
                self._postpone_job(job, now, job.problem)
            return len(running)

    def trim(self, keep: int) -> None:
        """Delete ended jobs, messages and seals except the newest `keep` of each."""
        with self._transaction():
            for statement in _TRIM.read_text(encoding="utf-8").split(";"):
                self._db.execute(statement, {"keep": keep})

    # Jobs.

    def next_job(self, now: float, busy: Collection[str]) -> Job | None:
        """Start the job that has waited longest, of a target that is not busy."""
        with self._transaction():
            row = self._fetch_first(
                "SELECT * FROM due_work WHERE due <= ? AND kind <> 'message'"
                " AND target NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT 1",
                now, json.dumps(list(busy)),
            )  # fmt: skip
            if row is None:
                return None
            job = replace(from_row(Job, row), state="running", attempts=row["attempts"] + 1, started=now)
            self._update_work(job.id, state=job.state, attempts=job.attempts, started=now, ended=None)
            if job.recurred and job.attempts == 1:  # the last reported verdict belongs to an earlier outage
                self._set_reported(job, None)
            return job

    def conclude(
        self, job: Job, verdict: dict[str, Any] | None, now: float, *, places: Sequence[str] = (),
        message: tuple[str, str] = ("", ""), problem: str = "", retry_at: float | None = None,
        rerun_at: float | None = None, seal: str = "",
    ) -> None:  # fmt: skip
        """End a job with a verdict, None if it is given up; if that is news, queue `message` (title, body) to `places`.

        The last job of an incident whose alerts are all resolved closes the incident. `retry_at`: the artifacts could
        not be archived; the message is queued, and the job is tried again then. `rerun_at`: the verdict may change; the
        sections run once more then, if their alert still fires, or, for a recovery check, if none does. `seal` is the
        dossier's seal, stored here as a checkpoint. After a job that is given up, the next verdict is reported even if
        it is the same.
        """
        at, status = self.clock.to_wall_clock(now), verdict["status"] if verdict else "UNKNOWN"
        signature = record.signature(verdict) if verdict else None
        with self._transaction():
            as_it_was = self._has_firing_alert(job.incident) == (job.kind == "firing")
            if retry_at is not None:
                self._postpone_job(job, retry_at, problem)
            elif rerun_at is not None and as_it_was and not job.rerun:
                self._update_work(
                    job.id, key=f"{job.key}/again", state="waiting", attempts=0, rerun=1, recurred=0, due=rerun_at,
                    ended=now, problem="",
                )  # fmt: skip
            else:
                self._update_work(job.id, state="done" if verdict else "failed", ended=now, problem=problem)
            is_known = self._fetch_first(
                "SELECT 1 FROM reported WHERE incident = ? AND target = ? AND signature = ?",
                job.incident, job.target, signature,
            )  # fmt: skip
            if verdict:
                stored = json.dumps(verdict, ensure_ascii=False)
                self._execute("UPDATE incidents SET verdict = ? WHERE id = ?", stored, job.incident)
            if places or not verdict:
                self._set_reported(job, signature)
            self._execute(
                "UPDATE incidents SET closed = ? WHERE id = ? AND closed IS NULL"
                " AND id NOT IN (SELECT incident FROM unfinished)",
                at, job.incident,
            )  # fmt: skip
            if seal:
                self._execute(
                    "INSERT OR IGNORE INTO seals (incident, seal, at) VALUES (?, ?, ?)", job.incident, seal, at
                )
            about = json.dumps({"title": message[0], "body": message[1], "status": status})
            for place in () if is_known else places:
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
        moved = "kind = 'message' AND state = 'waiting' AND place NOT IN (SELECT value FROM json_each(?))"
        configured = json.dumps([*places])
        with self._transaction():
            self._execute(
                "INSERT INTO work (incident, kind, place, about, made, due)"
                " SELECT DISTINCT incident, kind, p.value, about, made, ? FROM work AS w, json_each(?) AS p"
                f" WHERE {moved} AND NOT EXISTS (SELECT 1 FROM work"
                " WHERE (incident, place, about, made) = (w.incident, p.value, w.about, w.made)) ORDER BY w.id",
                now, configured, configured,
            )  # fmt: skip
            return self._execute(f"DELETE FROM work WHERE {moved}", configured).rowcount

    def due_messages(self, now: float) -> list[Notice]:
        """Return the messages that are due, oldest first; an incident's messages to one URL keep their order."""
        rows = self._query("SELECT * FROM due_work WHERE due <= ? AND kind = 'message' ORDER BY id", now)
        return [from_row(Notice, row) for row in rows]

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
        tried = {"attempts": message.attempts + 1, "problem": problem}
        with self._transaction():
            if due is not None:
                self._update_work(message.id, due=due, **tried)
            else:
                self._update_work(message.id, state="failed", ended=self.clock.now(), **tried)
                self._execute("DELETE FROM reported WHERE incident = ?", message.incident)

    # Reading.

    def counts(self) -> dict[str, int]:
        """Count jobs and messages by state (such as `jobs_waiting`), and `incidents_open`."""
        found = {f"jobs_{s}": 0 for s in ("waiting", "running", "done", "failed")}
        found |= {f"messages_{s}": 0 for s in ("waiting", "sent", "failed")}
        rows = self._query(
            "SELECT CASE WHEN kind <> 'message' THEN 'jobs_' || state WHEN state = 'done' THEN 'messages_sent'"
            " ELSE 'messages_' || state END AS name, count(*) AS n FROM work"
            " WHERE kind = 'message' OR state <> 'waiting' OR due <= ? GROUP BY name"  # others wait on purpose
            " UNION ALL SELECT 'incidents_open', count(*) FROM incidents WHERE closed IS NULL",
            self.clock.now(),
        )
        return found | {row["name"]: row["n"] for row in rows}

    def incidents(self, limit: int = 50, offset: int = 0) -> list[IncidentState]:
        """Return incidents, newest first."""
        rows = self._query("SELECT * FROM incident_states ORDER BY opened DESC, id LIMIT ? OFFSET ?", limit, offset)
        of_incident = "SELECT * FROM work WHERE incident = ? AND kind <> 'message' ORDER BY id"
        return [incident_from_rows(row, self._query(of_incident, row["id"])) for row in rows]

    def seals(self, incident: str) -> list[tuple[float, str]]:
        """Return the seals of an incident's dossier with their times, oldest first."""
        rows = self._query("SELECT at, seal FROM seals WHERE incident = ? ORDER BY rowid", incident)
        return [(row["at"], row["seal"]) for row in rows]

    # Inside a transaction.

    def _open_incident(self, alerts: Sequence[Alert], target: str, window_s: float, now: float) -> str:
        """Return the incident of alerts of which one fires: the one that they name, else their group's, else a new one.

        Their group's is open or was closed a moment ago. If the group or the target of an alert changed while it fires,
        its open incident gets the new ones.
        """
        at, firing = self.clock.to_wall_clock(now), [a for a in alerts if a.firing]
        group = "" if alerts[0].incident else digest(alerts[0].group)  # a named incident is found by its name only
        known = group and (
            self._fetch_first(
                "SELECT id FROM incidents WHERE group_key = ? AND target = ?"
                " AND (closed IS NULL OR abs(closed - ?) < ?) ORDER BY closed IS NOT NULL, opened DESC LIMIT 1",
                group, target, at, window_s,
            )
            or self._fetch_first(
                "SELECT id FROM incidents WHERE closed IS NULL AND group_key <> '' AND id IN (SELECT incident"
                " FROM alerts WHERE firing AND fingerprint IN (SELECT value FROM json_each(?)))"
                " ORDER BY opened DESC LIMIT 1",
                json.dumps([alert.fingerprint for alert in alerts]),
            )
        )  # fmt: skip
        id_ = str(known["id"]) if known else routes.incident_id(firing, target)
        self._execute(
            "INSERT INTO incidents (id, alert, group_key, target, opened) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET closed = NULL, group_key = excluded.group_key,"
            " target = iif(excluded.group_key = '', target, excluded.target)",
            id_, firing[0].title, group, target, at,
        )  # fmt: skip
        return id_

    def _record_alert(
        self, alert: Alert, config: Settings, incident: str, since: float, now: float
    ) -> tuple[int | None, bool]:
        """Record an alert that fires; return its job, None if it has one already, and whether the alert is news.

        Its job is the last one of its sections since then, in this outage, also another alert's; else a new one.
        """
        routed = routes.route_of(alert, config)
        sections = ",".join(routed.sections)
        # An alert that fires after the recovery was checked is a further outage.
        check = self._fetch_first("SELECT max(id) AS id FROM work WHERE incident = ? AND kind = 'resolved'", incident)
        last_check = (check and check["id"]) or 0
        known = self._fetch_first(
            "SELECT firing FROM alerts JOIN work ON work.id = job"
            " WHERE alerts.incident = ? AND fingerprint = ? AND sections = ? AND job > ?",
            incident, alert.fingerprint, sections, last_check,
        )  # fmt: skip
        fires = known is not None and bool(known["firing"])
        last = self._fetch_first(
            "SELECT id, made, started FROM work WHERE incident = ? AND kind = 'firing' AND sections = ? AND target = ?"
            " AND id > ? ORDER BY id DESC LIMIT 1",
            incident, sections, routed.target, last_check,
        )  # fmt: skip
        if last and last["made"] > since and (fires or self._covers(last["started"], alert)):
            job = int(last["id"])
            # An alert that has ended beside others and fires anew is news: the job's run saw nothing of that.
            repeats = fires or (known is not None and self._covers(last["started"], alert, within_s=0.0))
        else:
            parameters = routed.parameters | routes.detection_parameters(alert, routed.sections)
            recurred = bool(last_check and not last)
            job = self._add_job(incident, "firing", sections, routed.target, parameters, alert.line, now, recurred)
            repeats = False
        self._execute(
            "INSERT INTO alerts (incident, fingerprint, job, firing, last) VALUES (?, ?, ?, 1, ?)"
            " ON CONFLICT (incident, fingerprint)"
            " DO UPDATE SET job = excluded.job, firing = 1, count = count + 1, last = excluded.last",
            incident, alert.fingerprint, job, now,
        )  # fmt: skip
        return None if repeats else job, not repeats

    def _covers(self, started: float | None, alert: Alert, within_s: float = TOGETHER_S) -> bool:
        """Return whether a job that was started then looks at what an alert tells: it began before, or soon after."""
        return started is None or alert.starts_at.timestamp() < self.clock.to_wall_clock(started) + within_s

    def _end_alerts(self, now: float, where: str, *values: Any) -> Iterable[str]:
        """End the alerts that fire and are found so; return their incidents."""
        ended = self._execute(
            f"UPDATE alerts SET firing = 0, last = ? WHERE firing AND {where} RETURNING incident", now, *values
        ).fetchall()
        return dict.fromkeys(row["incident"] for row in ended)

    def _add_recovery_jobs(self, line: str, incident: str, now: float) -> list[int]:
        """Add a job per target that checks the recovery, when the last alert of an incident has ended.

        `line` is about that alert.
        """
        if self._has_firing_alert(incident):
            return []
        self._cancel_jobs(incident, "kind = 'firing' AND rerun", now)
        targets = self._execute(
            "SELECT target FROM work WHERE incident = ? AND kind = 'firing' GROUP BY target ORDER BY min(id)", incident
        ).fetchall()
        section = routes.recovery_section()
        return [self._add_job(incident, "resolved", section, row["target"], {}, line, now) for row in targets]

    def _cancel_jobs(self, incident: str, where: str, now: float) -> None:
        """End the jobs of an incident that wait and are found so; delete those that were never started."""
        waiting = f"incident = ? AND state = 'waiting' AND {where}"
        self._execute(f"DELETE FROM work WHERE {waiting} AND attempts = 0 AND NOT rerun", incident)
        self._execute(f"UPDATE work SET state = iif(rerun, 'done', 'failed'), ended = ? WHERE {waiting}", now, incident)

    def _add_job(
        self, incident: str, kind: Kind, sections: str, target: str, parameters: dict[str, Any], alert: str, now: float,
        recurred: bool = False,
    ) -> int:  # fmt: skip
        """Add a job, and return its id.

        Its key has a random part: if a journal was lost, the dossier still has artifacts with that journal's keys, and
        a job with the same key would report the verdict of that time.
        """
        return self._add_work(
            incident=incident, kind=kind, key=f"{incident}/{kind}/{sections}/{secrets.token_hex(8)}",
            sections=sections, target=target, recurred=recurred, made=now, due=now,
            about=json.dumps({"parameters": parameters, "alert": alert}),
        )  # fmt: skip

    def _add_work(self, **values: Any) -> int:
        """Add a row with these columns, and return its id."""
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        added = self._execute(f"INSERT INTO work ({columns}) VALUES ({marks})", *values.values())
        return int(added.lastrowid or 0)

    def _has_firing_alert(self, incident: str) -> bool:
        """Return whether an alert of an incident fires."""
        return bool(self._fetch_first("SELECT 1 FROM alerts WHERE incident = ? AND firing", incident))

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
        self._execute("REPLACE INTO reported VALUES (?, ?, ?)", job.incident, job.target, signature)
