"""The runbook's own look at the receiver: one GET at its declared address, as a second witness while sends fail."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from runbook_lib import rows
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.model.frames import row
from runbook_lib.sources import Opening, ReadCost, SourceError
from runbook_lib.sources.http import get

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: What a failed request says of the receiver, by the code of its error.
_RESULTS = {"no_connection": "refuses", "no_answer": "unreached", "hung": "silent"}
#: HTTP statuses below 500 with which a server says that it can not serve now.
_UNWELL = ("408", "425", "429")


class ReceiverProbe:
    """The receiver of the notifications, asked whether it answers at all."""

    def __init__(self, url: str, read_cost: ReadCost) -> None:
        self._url, self._read_cost = url, read_cost

    @classmethod
    def declared(cls, opening: Opening) -> ReceiverProbe | None:
        """Return the probe of the target's `receiver_url`; None if it is not declared."""
        url = opening.target.service("receiver")
        return cls(url, opening.read_cost) if url else None

    def look(self) -> ReceiverLook:
        """Request the address once, within 6 s."""
        code, base, path = "200", *self._split()
        try:
            get("receiver", self._read_cost, base, path, name="look")
        except SourceError as e:
            code = e.code
        result = _RESULTS.get(code, "")
        if code.isdecimal() or code in ("not_found", "redirect"):
            result = "unwell" if code.startswith("5") or code in _UNWELL else "answers"
        status = {"not_found": 404}.get(code, int(code) if code.isdecimal() else None)
        return ReceiverLook(result=result, status=status, ms=round(self._read_cost.queries[-1].ms))

    def _split(self) -> tuple[str, str]:
        scheme, _, rest = self._url.partition("://")
        host, _, path = rest.partition("/")
        return f"{scheme}://{host}", path


class ReceiverLook(rows.Row):
    """The result of one request: answers, unwell, refuses, silent (it accepted the connection), unreached (it did not),
    or "" if the request shows nothing of the receiver.

    `status` is the HTTP status, if there was one; `ms`, the time that it took.
    """

    result: str = ""
    status: int | None = None
    ms: float | None = None


def look(rb: Context) -> Frames:
    """Return the frame `receiver` of a look at the receiver; {} if its address is not declared."""
    with suppress(SourceError):
        return {"receiver": row(**vars(rb.source("receiver").look()))}
    return {}


def observation(frames: Frames) -> str:
    """Return the observation of the look at the receiver; "" if there was none."""
    seen = rows.first(frames.get("receiver"), ReceiverLook)
    return f"receiver.{seen.result}" if seen and seen.result else ""


_TEXTS = {
    "answers": "receiver.answers",
    "unwell": "receiver.unwell",
    "refuses": "receiver.refuses",
    "silent": "receiver.silent",
    "unreached": "receiver.unreached",
}


def describe(frames: Frames) -> Text:
    """Return what the look at the receiver has shown, or that there was none."""
    seen = rows.first(frames.get("receiver"), ReceiverLook)
    if seen is None:
        return say("receiver.undeclared")
    return say(_TEXTS.get(seen.result, "receiver.not_seen"), status=seen.status, ms=seen.ms)
