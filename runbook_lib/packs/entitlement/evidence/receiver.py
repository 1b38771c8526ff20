"""The runbook's own request to the receiver: a second witness while sends fail."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.sources.http import HttpServer
from runbook_lib.sources.source import Opening, ReadCost, SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

_TOO_MANY_REQUESTS = 429
#: The result of a request without an answer, by the code of its error; other errors show nothing of the receiver.
_RESULTS = {"no_connection": "refuses", "no_answer": "unreached", "no_route": "unreached", "hung": "silent"}
#: The observation of each result, which is also its message.
_OBSERVATIONS = {
    "answers": "receiver.answers",
    "unwell": "receiver.unwell",
    "refuses": "receiver.refuses",
    "silent": "receiver.silent",
    "unreached": "receiver.unreached",
}


class ReceiverProbe:
    """A source that asks the receiver of the notifications whether it answers."""

    def __init__(self, url: str, read_cost: ReadCost) -> None:
        base = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        self._server, self._path = HttpServer("receiver", base, read_cost), url.removeprefix(base).lstrip("/")

    @classmethod
    def declared(cls, opening: Opening) -> ReceiverProbe | None:
        """Return the probe of the target's `destination_url`; None if it is not declared."""
        url = opening.target.service("destination")
        return cls(url, opening.read_cost) if url else None

    def request(self) -> ProbeResult:
        """Request the address once, by GET; what a proxy answers shows nothing of the receiver."""
        if self._server.behind_proxy:
            return ProbeResult("proxied")
        status, result = None, ""
        try:
            status = self._server.get_status(self._path, "probe")
        except SourceError as e:
            result = _RESULTS.get(e.code, "")
        else:
            result = "unwell" if status >= 500 or status == _TOO_MANY_REQUESTS else "answers"
        return ProbeResult(result, status, round(self._server.read_cost.queries[-1].ms))


class ProbeResult(rows.Row):
    """The result of one request: answers, unwell, refuses, silent (it accepted the connection), unreached (it did not),
    proxied (it was not sent), or "" if the request shows nothing of the receiver.

    `status` is the HTTP status, if there was one; `ms`, the time that it took.
    """

    result: str = ""
    status: int | None = None
    ms: float | None = None


def probe(rb: Context) -> Frames:
    """Return the frame `receiver` of a request to the receiver; {} if its address is not declared."""
    with suppress(SourceError):
        return {"receiver": rows.frame([rb.source("receiver").request()], ProbeResult)}
    return {}


def observation(frames: Frames) -> str:
    """Return the observation of the request to the receiver; "" if there is none."""
    seen = rows.first(frames.get("receiver"), ProbeResult)
    return _OBSERVATIONS.get(seen.result, "") if seen else ""


def describe(frames: Frames) -> Text:
    """Return what the request to the receiver has shown, or that there was none."""
    seen = rows.first(frames.get("receiver"), ProbeResult)
    if seen is None:
        return say("receiver.undeclared")
    if seen.result == "proxied":
        return say("receiver.proxied")
    return say(_OBSERVATIONS.get(seen.result, "receiver.not_seen"), status=seen.status, ms=seen.ms)
