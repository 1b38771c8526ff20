"""Run the journal's jobs: one investigation per target at a time, with retries until its artifacts are archived.

The thread of a job adds the alert to the incident's timeline, runs the investigation, and writes the result into the
journal. If it is interrupted, the job is still in the journal and runs again. Notes and artifacts carry the job's key,
so that each is written once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from runbook_lib.book import messages
from runbook_lib.dossier import overview, seal
from runbook_lib.model.finding import Reason, say
from runbook_lib.model.order import Order, RunProgress
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.notes import keep_note
from runbook_lib.privacy.masking import Masker
from runbook_lib.privacy.urls import show_url
from runbook_lib.receiver import notify
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.loop import Loop
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.work import Job
from runbook_lib.runs.executors import carry_out
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import Archive, OutputError

#: Maximum attempts of a job. After the last one the result is sent even if its artifacts could not be archived.
ATTEMPTS = 8
#: Seconds before the second attempt, doubled for each further one; and their maximum.
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0
#: Seconds beyond its deadline after which an investigation without a result is considered lost.
LOST_S = 300.0
#: Seconds between two times that the journal is trimmed.
TRIM_S = 24 * 3600.0
#: Seconds after which an alert that nobody repeats has ended, and between two times that this is looked for.
UNREPEATED_S, LOOK_S = 24 * 3600.0, 60.0
#: Seconds until a recovery that is not OK is checked once more, unless the verdict names them.
RECOVERY_S = 300.0
#: The author of an alert's line in the timeline.
WHO = "alert"

_log = logging.getLogger(__name__)


class Dispatcher(Loop):
    """Takes jobs from the journal while a worker is free and a job's target is not busy."""

    def __init__(
        self,
        journal: Journal,
        config: Settings,
        output: str,
        executor: Executor,
        metrics: Metrics,
        *,
        places: Sequence[str],
    ) -> None:
        """Prepare the thread.

        `executor` runs `executors.carry_out` and belongs to the caller; `places` are keys of `notify.urls_by_digest`.
        """
        super().__init__("dispatcher")
        self._journal, self._config, self._output, self._executor = journal, config, output, executor
        self._metrics, self._places = metrics, tuple(places)
        self._clock, self._recovered, self._trim_due, self._look_due = journal.clock, False, -math.inf, -math.inf
        #: What the running investigations have found, by incident and target; those on other machines do not tell.
        self.progress: dict[tuple[str, str], RunProgress] = {}

    def poll(self) -> None:
        """Start jobs while a worker is free; first those that a dead receiver was running. Raises JournalError."""
        if not self._recovered:
            self._journal.recover(self._clock.now())
            self._recovered = True
        if time.monotonic() >= self._trim_due:
            self._trim_due = time.monotonic() + TRIM_S  # set first: a trim that fails must not delay the jobs
            self._journal.trim(self._config.receiver.keep_runs)
        if time.monotonic() >= self._look_due:
            self._look_due, now = time.monotonic() + LOOK_S, self._clock.now()
            line = messages.text(say("alert.unrepeated", hours=UNREPEATED_S / 3600))
            self._journal.end_unrepeated(now - UNREPEATED_S, line, now)
        while not self.stopping.is_set() and len(busy := self.busy) < self._config.receiver.workers:
            job = self._journal.next_job(self._clock.now(), busy)
            if job is None:
                return
            try:
                self.start_work(job.target, partial(self._run_job, job))
            except Exception as e:  # no further thread can be started
                self._leave_unreported(job, e)
                return

    def _run_job(self, job: Job) -> None:
        """Run one job; it ends done, failed, or waiting for another attempt."""
        try:
            self._try_job(job)
        except BaseException as e:  # from what reports the end, for example
            _log.exception("%s: unexpected", job.key)
            self._leave_unreported(job, e)

    def _leave_unreported(self, job: Job, e: BaseException) -> None:
        """Postpone or give up a job whose end could not be reported, so that it does not stay in progress."""
        problem = type(e).__name__  # its text may contain anything
        if job.attempts < ATTEMPTS:
            again = self._retry_time(job, problem)
            return self.write_until_done(lambda: self._journal.retry(job, again, problem))
        _log.error("%s is given up: %s", job.key, problem)
        title = f"{messages.text(say('notify.not_done'))} · {job.incident}"
        message = title, messages.text(say("notify.problem", problem=problem))
        told: dict[str, Any] = {"places": self._places, "message": message, "problem": problem}
        self.write_until_done(lambda: self._journal.conclude(job, None, self._clock.now(), **told))
        self._metrics.failed.inc()

    def _try_job(self, job: Job) -> None:
        """Run one job and write its end into the journal."""
        last = job.attempts >= ATTEMPTS
        result: dict[str, Any] | None = None
        try:
            result = self._run_investigation(job, last)
            problem = result["problem"]
        except UsageError as e:
            problem = str(e)
            last = last or not isinstance(e, OutputError)  # a wrong setting stays wrong at the next attempt
        except BaseException as e:  # an executor may raise anything; the job must not be lost
            problem = f"{type(e).__name__}: {e}"
        problem = self._make_masker(job).scrub_once(problem)
        again = self._retry_time(job, problem) if problem and not last else None
        # A complete result is reported at once, even if its artifacts could not be archived.
        if again is not None and not (result and _reached_every_step(result["document"])):
            self.write_until_done(lambda: self._journal.retry(job, again, problem))
        else:
            self._report_end(job, result, problem, again)

    def _run_investigation(self, job: Job, last: bool) -> dict[str, Any]:
        """Run the investigation and return the result of `executors.carry_out`; add the alert to the timeline.

        Raises whatever the executor raises.
        """
        archive = Archive(self._output, job.incident)
        unnoted = self._add_note(archive, job, notify.alert_line(job), job.key)
        order = Order(
            sections=job.sections,
            output=self._output,
            target=job.target,
            incident=job.incident,
            lang=messages.language(),
            deadline_s=self._config.deadline_s,
            follow=job.kind == "firing",
            parameters=job.parameters,
            job=job.key,
            again=not last,
            unattended=True,
        )
        here = isinstance(self._executor, ThreadPoolExecutor)
        hear = [partial(self._keep_progress, (job.incident, job.target))] if here else []
        future = self._executor.submit(carry_out, order, *hear)
        try:
            result = future.result(order.deadline_s + LOST_S)
        except TimeoutError:
            future.cancel()
            raise
        finally:
            self.progress.pop((job.incident, job.target), None)
        if job.kind == "resolved" and not result["problem"]:
            text = say("alert.closed", sections=", ".join(job.sections), verdict=result["lines"][0])
            unnoted = unnoted or self._add_note(archive, job, messages.text(text), f"{job.key}/closed")
            overview.write_index(archive)
        return result | {"problem": result["problem"] or unnoted}

    def _keep_progress(self, job: tuple[str, str], said: RunProgress) -> None:
        before = self.progress.get(job, RunProgress())
        self.progress[job] = replace(said, strip=said.strip or before.strip)

    def _add_note(self, archive: Archive, job: Job, text: str, mark: str) -> str:
        """Add a line to the timeline, once per `mark`; return "" or why it could not be written."""
        try:
            archive.prepare()  # before the masker makes tokens
            keep_note(archive, self._make_masker(job).scrub_once(text), WHO, job=mark)
        except OutputError as e:
            return str(e)
        return ""

    def _retry_time(self, job: Job, problem: str) -> float:
        """Return when a job is tried again."""
        _log.warning("%s will be tried again: %s", job.key, problem)
        self._metrics.retried.inc()
        wait_s: float = min(FIRST_WAIT_S * 2 ** (job.attempts - 1), LONGEST_WAIT_S)
        return self._clock.now() + wait_s

    def _report_end(self, job: Job, result: dict[str, Any] | None, problem: str, again: float | None) -> None:
        """Write what a job found into the journal, with the message about it; None: the job is given up."""
        sealed = seal.seal_text(Archive(self._output, job.incident))  # it covers the notes added after the run
        link = self._dossier_link(job, result["index"] if result else None)
        masker = self._make_masker(job)
        title, body = notify.compose(job, result, problem, link, sealed)
        message = masker.scrub_once(title), masker.scrub_once(body)
        now = self._clock.now
        verdict = result["document"]["verdict"] if result else None
        wait_s = _seconds_to_rerun(job, verdict) if verdict else None
        # Counted first: whoever sees in the journal that a job has ended finds it in the metrics.
        if verdict is None:
            _log.error("%s is given up: %s", job.key, problem)
            self._metrics.failed.inc()
        elif again is None:
            self._metrics.finished.labels(verdict["status"]).inc()
            if not job.rerun:  # that one waited on purpose
                self._metrics.seconds.observe(max(now() - job.made, 0))
        self.write_until_done(
            lambda: self._journal.conclude(
                job, verdict, now(), places=self._places, message=message, problem=problem, retry_at=again,
                rerun_at=None if wait_s is None else now() + wait_s, seal=sealed,
            )
        )  # fmt: skip

    def _dossier_link(self, job: Job, index: str | None) -> str:
        """Return the dossier's public URL if one is configured, else its path."""
        url = self._config.receiver.public_url.rstrip("/")
        if url:
            return f"{url}/incidents/{job.incident}/{overview.INDEX}"
        with suppress(UsageError):
            return index or Archive(self._output, job.incident).place
        return f"{show_url(self._output)}/{job.incident}"  # it cannot be opened

    def _make_masker(self, job: Job) -> Masker:
        try:
            urls = self._config.target(job.target).urls()
        except UsageError:
            urls = []
        return Masker.of(urls, job.incident, Archive(self._output, job.incident).salt)


def _seconds_to_rerun(job: Job, verdict: dict[str, Any]) -> float | None:
    """Return the seconds after which a verdict may be another one; None if it only changes with an alert."""
    wait_s: float | None = verdict.get("look_again_s")
    if job.kind == "resolved":
        return (wait_s or RECOVERY_S) if verdict["status"] in ("WARNING", "CRITICAL") else None
    return wait_s


def _reached_every_step(document: dict[str, Any]) -> bool:
    """Return whether every step was reached; an interrupted run may have another verdict the next time."""
    return all(f["reason"] != Reason.NOT_RUN.value for r in document["runs"] for f in r["findings"])
