"""Carries out what the journal holds: one investigation a target at a time, each until its artifacts are kept.

A job's thread notes the alert in the incident's timeline, has the investigation done, and writes into the journal what
came of it. Whatever stops it before that, the job is still in the journal, and each of its steps is done once: notes
and artifacts carry the job's key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from runbook_lib import messages
from runbook_lib.alerts import notify
from runbook_lib.alerts.journal import Job, Journal
from runbook_lib.alerts.loop import Loop
from runbook_lib.alerts.metrics import Metrics
from runbook_lib.archive import dossier, seal
from runbook_lib.masking import Masker
from runbook_lib.model.finding import Reason, say
from runbook_lib.model.order import Order
from runbook_lib.notes import keep_note
from runbook_lib.runs.executors import carry_out
from runbook_lib.settings import Settings
from runbook_lib.store import Archive, OutputError
from runbook_lib.usage import UsageError

#: Times that a job is tried; the last time, what was found is told even where it could not be kept.
ATTEMPTS = 8
#: Seconds before the second try; doubled for each further one.
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0
#: Seconds beyond its deadline after which an investigation that does not come back is taken as lost.
LOST_S = 300.0
#: Who notes an alert in the timeline.
WHO = "alert"

_log = logging.getLogger(__name__)


class Dispatcher(Loop):
    """Takes jobs out of the journal as long as there are workers and a target that is not busy."""

    def __init__(
        self,
        journal: Journal,
        config: Settings,
        output: str,
        executor: Executor,
        metrics: Metrics,
        *,
        places: Sequence[str],
        lang: str,
    ) -> None:
        """`executor` runs `executors.carry_out` and is the caller's; `places` are keys of `notify.places`."""
        super().__init__("dispatcher")
        self._journal, self._config, self._output, self._executor = journal, config, output, executor
        self._metrics, self._places, self._lang = metrics, tuple(places), lang

    def first(self) -> None:
        """What a receiver that died was running waits again. Raises JournalError."""
        self._journal.recover(time.time())

    def look(self) -> None:
        """Begin jobs as long as somebody is free. Raises JournalError."""
        while not self.stopping.is_set() and len(busy := self.busy) < self._config.receiver.workers:
            job = self._journal.next_job(time.time(), busy)
            if job is None:
                return
            self.begin(job.target, partial(self._work, job))

    def _work(self, job: Job) -> None:
        """Do one job; it ends concluded, failed, or waiting for another try."""
        last = job.attempts >= ATTEMPTS
        came: dict[str, Any] | None = None
        with self._metrics.running.track_inprogress():
            try:
                came = self._investigate(job, last)
                problem = came["problem"]
            except UsageError as e:
                problem = str(e)
                last = last or not isinstance(e, OutputError)  # what is written wrong stays wrong
            except BaseException as e:  # an executor may raise anything, and the job must not be lost with it
                problem = f"{type(e).__name__}: {e}"
            problem = self._masker(job).scrub(problem)
            again = self._again(job, problem) if problem and not last else None
            # What was seen in full is told at once, also where no artifact of it could be kept.
            if came is not None and (again is None or _seen(came["document"])):
                self._concluded(job, came, problem, again)
            elif again is not None:
                self.keep(lambda: self._journal.again(job, again, problem))
            else:
                self._failed(job, problem)

    def _investigate(self, job: Job, last: bool) -> dict[str, Any]:
        """As `executors.carry_out`, with the alert in the incident's timeline; raises whatever the executor does."""
        archive = Archive(self._output, job.incident)
        unnoted = self._note(archive, job, job.alert, job.key)
        order = Order(
            sections=job.sections,
            output=self._output,
            target=job.target,
            incident=job.incident,
            lang=self._lang,
            deadline_s=self._config.deadline_s,
            follow=job.kind == "firing",
            parameters=job.parameters,
            job=job.key,
            again=not last,
            unattended=True,
        )
        future = self._executor.submit(carry_out, order)
        try:
            came = future.result(order.deadline_s + LOST_S)
        except TimeoutError:
            future.cancel()
            raise
        if job.kind == "resolved" and not came["problem"]:
            said = say("alert.closed", sections=", ".join(job.sections), verdict=came["lines"][0])
            unnoted = unnoted or self._note(archive, job, messages.text(said, self._lang), f"{job.key}/closed")
            dossier.write_index(archive, self._lang)
        return came | {"problem": came["problem"] or unnoted}

    def _note(self, archive: Archive, job: Job, text: str, mark: str) -> str:
        """Put a line into the timeline, once; why it could not be, "" where it is. An investigation goes on without."""
        try:
            archive.prepare()  # before somebody is given a token
            keep_note(archive, self._masker(job).scrub(text), WHO, job=mark)
        except OutputError as e:
            return str(e)
        return ""

    def _again(self, job: Job, problem: str) -> float:
        """When a job is tried again."""
        _log.warning("%s is tried again: %s", job.key, problem)
        self._metrics.retried.inc()
        wait_s: float = min(FIRST_WAIT_S * 2 ** (job.attempts - 1), LONGEST_WAIT_S)
        return time.time() + wait_s

    def _failed(self, job: Job, problem: str) -> None:
        _log.error("%s is given up: %s", job.key, problem)
        sealed = self._seal(job)
        message = self._scrubbed(job, notify.not_done(job, problem, self._link(job, None), self._lang, sealed))
        self.keep(lambda: self._journal.failed(job, time.time(), problem, self._places, message, seal=sealed))
        self._metrics.failed.inc()

    def _concluded(self, job: Job, came: dict[str, Any], problem: str, again: float | None) -> None:
        link = self._link(job, came["index"])
        sealed = self._seal(job)
        message = self._scrubbed(job, notify.compose(job, came, problem, link, self._lang, sealed))
        verdict = came["document"]["verdict"]
        second_look = None
        if (wait_s := verdict.get("look_again_s")) is not None:
            line = messages.text(say("alert.second_look", seconds=wait_s, alert=job.alert), self._lang)
            second_look = time.time() + wait_s, line
        self.keep(
            lambda: self._journal.concluded(
                job,
                verdict,
                time.time(),
                places=self._places,
                message=message,
                problem=problem,
                again=again,
                second_look=second_look,
                seal=sealed,
            )
        )
        if again is not None:
            return
        self._metrics.finished.labels(verdict["status"]).inc()
        self._metrics.seconds.observe(time.time() - job.accepted)

    def _seal(self, job: Job) -> str:
        """The dossier's head at this moment: later than the run's own, because the timeline has gone on."""
        return seal.told(Archive(self._output, job.incident))

    def _link(self, job: Job, index: str | None) -> str:
        """The dossier as somebody else can open it, else where it lies."""
        url = self._config.receiver.public_url.rstrip("/")
        if url:
            return f"{url}/incidents/{job.incident}/{dossier.INDEX}"
        return index or Archive(self._output, job.incident).place

    def _scrubbed(self, job: Job, message: tuple[str, str]) -> tuple[str, str]:
        masker = self._masker(job)
        return masker.scrub(message[0]), masker.scrub(message[1])

    def _masker(self, job: Job) -> Masker:
        try:
            urls = self._config.target(job.target).urls()
        except UsageError:
            urls = []
        return Masker.of(urls, job.incident, Archive(self._output, job.incident).salts)


def _seen(document: dict[str, Any]) -> bool:
    """Whether every step was reached: a run that died may say something else the next time."""
    return all(f["reason"] != Reason.NOT_RUN.value for r in document["runs"] for f in r["findings"])
