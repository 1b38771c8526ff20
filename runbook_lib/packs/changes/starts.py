"""What starts again and again, whether or not anything is late: how often, and since when. It names no place.

One rule for every part: a server, a pod, all sessions of a service, a connection that logs report as lost. A single
start, as of a deploy, is no repetition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Text, say
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


#: The sentence on each kind of start: of a server or pod, of all sessions of a service, of a connection by a log.
_SENTENCES = {"start": "changed.again_start", "sessions": "changed.again_sessions", "log": "changed.again_log"}


class Start(rows.Row):
    """A moment at which a part is seen to have started; of the kind "log", one at which a log says that it was away."""

    kind: str = ""
    part: str = ""
    at: pd.Timestamp | None = None


Reader = Callable[["Context"], Iterable[Start]]
Moments = dict[tuple[str, str], list[pd.Timestamp]]


def watch(rb: Context, first: Iterable[tuple[Reader, list[Start]]], watch_s: float) -> list[Start]:
    """Return the starts that parts show: the first ones, and what their readers return later.

    A reader is asked again while a part of it is young, until that has started again or the time is over.
    """
    rb, until = rb.of(""), time.monotonic() + watch_s
    seen = [(read, [*starts]) for read, starts in first]
    while time.monotonic() < until and (young := [(r, s) for r, s in seen if _may_start_again(s, rb)]):
        time.sleep(rb.number("again.every"))
        for read, starts in young:
            with suppress(SourceError):  # what ends again and again does not answer each time
                starts += read(rb)
    return [start for _, starts in seen for start in starts]


def _may_start_again(starts: list[Start], rb: Context) -> bool:
    grouped = _separate(starts, rb.number).values()
    return any(len(at) == 1 and (rb.now() - at[0]).total_seconds() < rb.number("again.young") for at in grouped)


def _separate(starts: Iterable[Start], number: Callable[[str], float]) -> Moments:
    """Return the separate starts by kind and part: those seen in a row, without a longer gap, are one."""
    found, last = Moments(), dict[tuple[str, str], pd.Timestamp]()
    for at, key in sorted((s.at, (s.kind, s.part)) for s in starts if s.at is not None):
        gap = number("again.gap" if key[0] == "log" else "again.apart")
        if key not in last or (at - last[key]).total_seconds() > gap:
            found.setdefault(key, []).append(at)
        last[key] = at
    return found


def describe_repeated(frame: pd.DataFrame | None, given: JudgeInput) -> list[Text]:
    """Return a sentence on each part that has lately started at least twice."""
    within = pd.Timedelta(seconds=given.number("again.within"))
    starts = [s for s in rows.each(frame, Start) if s.at is not None and s.at > given.as_of - within]
    now = max([given.as_of, *(s.at for s in starts if s.at is not None)])
    return [
        say(
            _SENTENCES[kind],
            part=part,
            n=len(at),
            seconds=(now - at[0]).total_seconds(),
            since=f"{at[0]:%H:%M:%SZ}",
            ago=(now - at[-1]).total_seconds(),
            lines=sum((s.kind, s.part) == (kind, part) for s in starts),
        )
        for (kind, part), at in _separate(starts, given.number).items()
        if len(at) > 1
    ]
