"""Tells people what was concluded: the journal's messages, through apprise, until each has reached its place.

A place is known by a digest of its URL: the URL may hold a secret, and is neither kept nor logged.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import cache, partial
from threading import Thread
from typing import Any

from runbook_lib import messages
from runbook_lib.alerts.alert import digest
from runbook_lib.alerts.journal import Job, Journal, Notice
from runbook_lib.alerts.loop import Loop
from runbook_lib.alerts.metrics import Metrics
from runbook_lib.model.finding import say
from runbook_lib.settings import Settings
from runbook_lib.usage import UsageError
from runbook_lib.view import render

#: Seconds that a place is given to take a message.
SEND_S = 30.0
#: Seconds before a message is sent a second time; doubled for each further one.
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 600.0
#: Seconds after which a message that nobody takes is given up.
GIVE_UP_S = 24 * 3600.0
#: Characters of a message.
TITLE, BODY = 200, 3000

_log = logging.getLogger(__name__)
#: What apprise calls a verdict; it shows as a colour or a symbol, where a place has such.
_TYPES = {"OK": "success", "WARNING": "warning", "CRITICAL": "failure"}


def places(config: Settings) -> dict[str, str]:
    """Where messages go: apprise URLs by the digest that stands for them in the journal.

    Raises UsageError, one line without the URL, for one that cannot be used.
    """
    found = {}
    for n, url in enumerate(config.receiver.notify_urls(), start=1):
        if _place(url) is None:
            scheme = re.match(r"[a-z0-9]{2,20}(?=://)", url)
            raise UsageError(
                f"notify URL number {n} ({scheme[0] + '://…' if scheme else 'without a scheme'}) is not one that "
                "apprise can use"
            )
        found[digest(url)] = url
    return found


def compose(job: Job, came: dict[str, Any], problem: str, link: str, lang: str, seal: str = "") -> tuple[str, str]:
    """Title and body of what a job concluded; `came` as from `investigation.summary`, `seal` as it is told."""
    first, *rest = came["lines"]
    document = came["document"]
    sections = ", ".join(r["section"] for r in document["runs"])
    time = render.when(document["as_of"])
    looked = say("notify.looked", target=job.target, sections=sections, time=time)
    lines = [job.alert, messages.text(looked, lang), *rest]
    if problem:
        lines.append(messages.text(say("notify.problem", problem=problem), lang))
    return _cut(first, job.incident, lines, seal, link)


def not_done(job: Job, problem: str, link: str, lang: str, seal: str = "") -> tuple[str, str]:
    """Title and body where a job is given up."""
    lines = [job.alert, messages.text(say("notify.problem", problem=problem), lang)]
    return _cut(messages.text(say("notify.not_done"), lang), job.incident, lines, seal, link)


class Notifier(Loop):
    """Sends the journal's messages, one at a time for each place, so that one that hangs holds up no other."""

    def __init__(self, journal: Journal, places: Mapping[str, str], metrics: Metrics) -> None:
        """`places` as from the function of that name."""
        super().__init__("notifier")
        self._journal, self._places, self._metrics = journal, dict(places), metrics

    def look(self) -> None:
        """Send what is due to places that are free. Raises JournalError."""
        for message in self._journal.due_messages(time.time()):
            url = self._places.get(message.place)
            if url is None:
                self._give_up(message, "this place is no longer among the notify URLs")
            elif time.time() - message.made > GIVE_UP_S:
                self._give_up(message, f"not sent within {GIVE_UP_S / 3600:.0f} h")
            elif not self.stopping.is_set() and message.place not in self.busy:
                self.begin(message.place, partial(self._send, message, url))

    def _send(self, message: Notice, url: str) -> None:
        came: list[str] = []
        sending = Thread(target=lambda: came.append(deliver(url, message)), daemon=True)
        sending.start()
        sending.join(SEND_S)
        problem = came[0] if came else f"no answer within {SEND_S:.0f} s"
        if not problem:
            self.keep(lambda: self._journal.sent(message, time.time()))
            self._metrics.messages.labels("sent").inc()
        else:
            wait_s = min(FIRST_WAIT_S * 2**message.attempts, LONGEST_WAIT_S)
            _log.warning("message %d to place %s is sent again: %s", message.id, message.place, problem)
            self.keep(lambda: self._journal.not_sent(message, time.time() + wait_s, problem))
            self._metrics.messages.labels("retried").inc()
        sending.join()  # a place that hangs stays busy: it is not asked by one more thread

    def _give_up(self, message: Notice, problem: str) -> None:
        _log.error("message %d to place %s is given up: %s", message.id, message.place, problem)
        self._journal.not_sent(message, None, problem)
        self._metrics.messages.labels("failed").inc()


def deliver(url: str, message: Notice) -> str:
    """Send a message to a place; "" or why it was not taken, without anything of the URL."""
    from apprise import Apprise, NotifyFormat, NotifyType

    place = _place(url)
    if place is None:
        return "the notify URL is not one that apprise can use"
    to = Apprise(asset=place.asset)
    to.add(place)
    said: list[str] = []
    _said.set(said)
    try:
        taken = to.notify(
            message.body,
            title=message.title,
            notify_type=NotifyType(_TYPES.get(message.status, "info")),
            body_format=NotifyFormat.TEXT,
        )
    except Exception as e:  # a plug-in of apprise; its text may hold the URL
        return f"apprise failed: {type(e).__name__}"
    code = next((c[1] for line in said if (c := re.search(r"\berror=(\d{3})\b", line))), None)
    return "" if taken else f"the place answered {code}" if code else "the place is out of reach, or refused"


class _Listener(logging.Handler):
    """Hears what apprise says of the message that is being sent; nobody else does: it may hold URLs."""

    def emit(self, record: logging.LogRecord) -> None:
        if (said := _said.get()) is not None:
            said.append(record.getMessage())


_said: ContextVar[list[str] | None] = ContextVar("said", default=None)


@cache
def _asset() -> Any:
    """How apprise is used: in the calling thread, keeping nothing on disk, its log to nobody but us."""
    from apprise import AppriseAsset, PersistentStoreMode

    logger = logging.getLogger("apprise")
    logger.handlers, logger.propagate = [_Listener(logging.WARNING)], False
    return AppriseAsset(app_id="runbook", async_mode=False, service_timeout=0, storage_mode=PersistentStoreMode.MEMORY)


def _place(url: str) -> Any:
    """The place behind a URL; None where apprise cannot use it. Nothing is sent."""
    from apprise import Apprise

    return Apprise.instantiate(url, asset=_asset())


def _cut(first: str, incident: str, lines: Sequence[str], seal: str, link: str) -> tuple[str, str]:
    """A title in one line, and a body that is not too long, the incident, the seal and the link at their ends."""
    end, body, last = f" · {incident}", "\n".join(lines).strip(), f"{seal}\n{link}".strip()
    return f"{' '.join(first.split())[: TITLE - len(end)]}{end}", f"{body[: BODY - len(last)]}\n\n{last}"
