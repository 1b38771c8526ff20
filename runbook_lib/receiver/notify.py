"""Send the journal's messages to the notify URLs, with retries: through apprise, to Slack as threads.

A notify URL may contain a secret: the journal (column `place`) and the log hold only a digest of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, TypeVar

from runbook_lib.book import messages
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.receiver import slack
from runbook_lib.receiver.alert import digest
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.loop import Loop
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.work import Job, Notice
from runbook_lib.runs import forks
from runbook_lib.sources.settings import Settings
from runbook_lib.view import render

#: Seconds for the whole exchange in which a notify URL accepts a message.
SEND_S = 30.0
#: Seconds before the first retry of a message, doubled for each further one; and their maximum.
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 600.0
#: Seconds after which an undelivered message is given up.
GIVE_UP_S = 24 * 3600.0
#: Maximum characters of a message's title and body.
TITLE, BODY = 200, 3000

R = TypeVar("R")
_log = logging.getLogger(__name__)
#: apprise's type by status; some services show it as a colour or a symbol.
_TYPES = {"OK": "success", "WARNING": "warning", "CRITICAL": "failure"}


def urls_by_digest(config: Settings) -> dict[str, str]:
    """Return the notify URLs (apprise URLs) by their digests.

    Raises UsageError, one line without the URL, if apprise cannot use one.
    """
    found = {}
    for n, url in enumerate(config.receiver.channels(), start=1):
        if _open_url(url) is None:
            scheme = re.match(r"[a-z0-9]{2,20}(?=://)", url)
            raise UsageError(
                f"notify URL number {n} ({scheme[0] + '://…' if scheme else 'without a scheme'}) is not a valid "
                "apprise URL"
            )
        found[digest(url)] = url
    return found


def alert_line(job: Job) -> str:
    """Return the alert that started a job as one line; the line says if it is a further outage or run once more."""
    if job.recurred:
        return messages.text(say("alert.recurred", alert=job.alert))
    rerun = {"firing": "alert.rerun_firing", "resolved": "alert.rerun_resolved"}
    return messages.text(say(rerun[job.kind], alert=job.alert)) if job.rerun else job.alert


def compose(job: Job, result: dict[str, Any] | None, problem: str, link: str, seal: str = "") -> tuple[str, str]:
    """Return title and body for a job that has ended, within their maximum lengths.

    `result` is from `investigation.summary`, None if the job is given up; `seal` is from `seal.seal_text`. The incident
    ends the title, seal and link end the body.
    """
    verdict, *rest = result["lines"] if result else [messages.text(say("notify.not_done"))]
    recurred = say("notify.recurred", verdict=verdict)
    title = messages.text(recurred) if job.recurred else verdict
    lines = [alert_line(job)]
    if result:
        document = result["document"]
        sections, time = ", ".join(r["section"] for r in document["runs"]), render.when(document["as_of"])
        looked = say("notify.looked", target=job.target, sections=sections, time=time)
        lines += [messages.text(looked), *rest]
    if problem:
        lines.append(messages.text(say("notify.problem", problem=problem)))
    end, body, last = f" · {job.incident}", "\n".join(lines).strip(), f"{seal}\n{link}".strip()
    return f"{' '.join(title.split())[: TITLE - len(end)]}{end}", f"{body[: BODY - len(last)]}\n\n{last}"


class Notifier(Loop):
    """Sends the journal's messages, one at a time for each notify URL, so that a slow one does not delay the others."""

    def __init__(self, journal: Journal, urls: Mapping[str, str], metrics: Metrics) -> None:
        """Prepare the thread; `urls` is from `urls_by_digest`."""
        super().__init__("notifier")
        self._journal, self._urls, self._metrics = journal, dict(urls), metrics
        self._clock, self._readdressed = journal.clock, False

    def poll(self) -> None:
        """Send the messages that are due to URLs that are not busy. Raises JournalError."""
        if not self._readdressed:  # the URLs may be others than those of the last receiver
            if moved := self._journal.readdress([*self._urls], self._clock.now()):
                _log.warning("%d waiting messages go to the notify URLs that are configured now", moved)
            self._readdressed = True
        busy = {*self.busy}  # before the question: a message that is sent meanwhile must not be sent again
        for message in self._journal.due_messages(self._clock.now()):
            url = self._urls.get(message.place)
            if url is None:  # none is configured: the next start may name one
                if self._is_too_old(message):
                    self._give_up(message, "no notify URL is configured")
            elif not self.stopping.is_set() and message.place not in busy:
                busy.add(message.place)
                self.start_work(message.place, partial(self._send_message, message, url))

    def _send_message(self, message: Notice, url: str) -> None:
        """Send a message in a process of its own: no library limits a whole exchange, and a thread cannot be ended."""
        try:
            to = slack.Bot.of(_open_url(url)) or url
            sent = forks.call(_run_interruptibly, deliver, to, message, within_s=SEND_S)
        except Exception as e:
            sent = str(e) if isinstance(e, forks.ProcessDiedError) else f"it failed: {type(e).__name__}", ""
        self._record_result(message, *sent)

    def _record_result(self, message: Notice, problem: str, thread: str = "") -> None:
        """Record that a message was accepted, or the problem: it is sent again or given up."""
        if not problem:
            self.write_until_done(lambda: self._journal.mark_sent(message, thread))
            self._metrics.messages.labels("sent").inc()
        elif self._is_too_old(message):  # checked after a try: the clock may have been set meanwhile
            self.write_until_done(
                lambda: self._give_up(message, f"not sent within {GIVE_UP_S / 3600:.0f} h: {problem}")
            )
        else:
            wait_s = min(FIRST_WAIT_S * 2**message.attempts, LONGEST_WAIT_S)
            _log.warning("message %d to notify URL %s will be sent again: %s", message.id, message.place, problem)
            self.write_until_done(lambda: self._journal.mark_unsent(message, self._clock.now() + wait_s, problem))
            self._metrics.messages.labels("retried").inc()

    def _is_too_old(self, message: Notice) -> bool:
        """Return whether a message is given up if it cannot be sent now."""
        return self._clock.now() - message.made > GIVE_UP_S

    def _give_up(self, message: Notice, problem: str) -> None:
        _log.error("message %d to notify URL %s is given up: %s", message.id, message.place, problem)
        self._journal.mark_unsent(message, None, problem)
        self._metrics.messages.labels("failed").inc()


def _run_interruptibly(function: Callable[..., R], *arguments: Any) -> R:
    """Call a function in a forked process, which ends with its parent or on SIGTERM at any moment."""
    forks.end_with_parent()
    with forks.interruptible():
        return function(*arguments)


def deliver(to: slack.Bot | str, message: Notice) -> tuple[str, str]:
    """Send a message to a bot or a notify URL; return "" or why it was not accepted, without any part of the URL.

    The second value is the thread that the incident's next message replies to, "" if the service has none.
    """
    from apprise import Apprise, NotifyFormat, NotifyType

    if isinstance(to, slack.Bot):
        return slack.post(to, message)
    plugin = _open_url(to)
    if plugin is None:
        return "the notify URL is not a valid apprise URL", ""
    service = Apprise(asset=plugin.asset)
    service.add(plugin)
    logged: list[str] = []
    _apprise_log.set(logged)
    try:
        taken = service.notify(
            message.body,
            title=message.title,
            notify_type=NotifyType(_TYPES.get(message.status, "info")),
            body_format=NotifyFormat.TEXT,
        )
    except Exception as e:  # from a plug-in of apprise; its text may contain the URL
        return f"apprise failed: {type(e).__name__}", ""
    code = next((c[1] for line in logged if (c := re.search(r"\berror=(\d{3})\b", line))), None)
    refused = f"the service answered HTTP {code}" if code else "the service is unreachable, or refused"
    return "" if taken else refused, ""


class _LogCapture(logging.Handler):
    """Captures apprise's log lines for the message that is being sent; they may contain URLs and go nowhere else."""

    def emit(self, record: logging.LogRecord) -> None:
        if (logged := _apprise_log.get()) is not None:
            logged.append(record.getMessage())


_apprise_log: ContextVar[list[str] | None] = ContextVar("apprise_log", default=None)


@cache
def _apprise_asset() -> Any:
    """Return apprise's settings: it works in the calling thread, stores nothing on disk, and logs to `_LogCapture`."""
    from apprise import AppriseAsset, PersistentStoreMode

    logger = logging.getLogger("apprise")
    logger.handlers, logger.propagate = [_LogCapture(logging.WARNING)], False
    return AppriseAsset(app_id="runbook", async_mode=False, service_timeout=0, storage_mode=PersistentStoreMode.MEMORY)


def _open_url(url: str) -> Any:
    """Return apprise's plug-in for a URL, or None if apprise cannot use it. Sends nothing."""
    from apprise import Apprise, OverflowMode

    plugin = Apprise.instantiate(url, asset=_apprise_asset())
    if plugin is not None and not re.search(r"[?&]overflow=", url):
        plugin.overflow_mode = OverflowMode.SPLIT  # of a message cut off, the link at its end would be lost
    return plugin
