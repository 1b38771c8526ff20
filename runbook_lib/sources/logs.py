"""The lines of a workload's log as entries: a JSON object per line, or plain text. Pure.

A log holds secrets and user ids, and most of it is stack traces. It is parsed as it is, and what is kept of an entry is
cut and masked: nothing else leaves this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from runbook_lib.privacy import redaction

#: How much of a message, and of an exception's text, is kept; and how much more is masked before it is cut, so that
#: no half of a secret is kept.
LONGEST, BEYOND = 300, 700

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:[.,]\d{1,9})?) ?(Z|[+-]\d\d:?\d\d)?")
_LEVEL = re.compile(r"\b(TRACE|DEBUG|INFO|WARN(?:ING)?|ERROR|FATAL|CRITICAL|SEVERE)\b")
_LEVELS = {"WARNING": "WARN", "FATAL": "ERROR", "CRITICAL": "ERROR", "SEVERE": "ERROR"}
# What Spring Boot writes between the level and the message: pid --- [application] [thread] logger :
_SPRING = re.compile(r"\s*\d+ --- (?:\[[^\]]*+\]\s*+)*+\S++\s++: (?P<message>.*)")
_ERROR = re.compile(
    r"(?:Caused by: )?[A-Za-z_][\w.$]*(?:Error|Exception|Throwable|Shutdown|Violation|Timeout)(?:: .*)?"
)
_PYTHON_LAST = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?")
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_GOES_ON = re.compile(r"\s+\S|Caused by: |Suppressed: |Traceback |The above exception |During handling ")


@dataclass(frozen=True)
class LogEntry:
    """One entry of a log.

    `error` is the root cause of its stack trace as "class: text", or empty; `above` are the exceptions that it caused,
    the outermost first.
    """

    time: datetime | None
    level: str
    message: str
    error: str = ""
    above: tuple[str, ...] = ()


@dataclass(frozen=True)
class Log:
    """A log that was read: its entries by time, masked, the number of their lines, and the moment of the read."""

    entries: tuple[LogEntry, ...]
    lines: int
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


def read(text: str, mask: Callable[[str], str], since: datetime | None = None) -> Log:
    """Return the log of a text, its entries from a moment on; an entry without a time belongs to the one before."""
    kept, lines, time = [], 0, None
    for entry, n in _parse(redaction.redact_blocks(text).splitlines()):
        time = entry.time or time
        if since is None or (time is not None and time >= since):
            kept.append(entry)
            lines += n
    kept.sort(key=lambda entry: entry.time or _EARLIEST)  # several instances follow each other
    return Log(tuple(_mask_entries(kept, mask)), lines)


def _mask_entries(entries: Iterable[LogEntry], mask: Callable[[str], str]) -> Iterator[LogEntry]:
    @lru_cache(maxsize=10_000)  # errors recur
    def shorten(text: str) -> str:
        return mask(redaction.cut(text, LONGEST + BEYOND))[:LONGEST]

    for e in entries:
        above = tuple(map(shorten, e.above))
        yield LogEntry(e.time, shorten(e.level), shorten(e.message), shorten(e.error), above)


def _parse(lines: Iterable[str]) -> Iterator[tuple[LogEntry, int]]:
    """Yield the entries and the number of their lines; those of a stack trace belong to the plain entry before them."""
    last: LogEntry | None = None
    stack: list[str] = []
    plain, n = False, 0
    for line in lines:
        time, text = _split_time(line)
        own, rest = _split_time(text)  # a runner's time stands before the line's own
        text, time = rest if own else text, _choose_time(own, time)
        record = _from_json(text, time) if text.startswith("{") else None
        if record is None and plain and not own and _continues_trace(text):
            stack.append(text)
        elif text.strip():
            if last is not None:
                yield _with_errors(last, stack), n
            plain, n = record is None, 0
            last = record or _from_text(text, time or (last.time if last else None))
            stack = [text] if plain and _continues_trace(text) else []
        n += 1
    if last is not None:
        yield _with_errors(last, stack), n


def _split_time(line: str) -> tuple[datetime | None, str]:
    found = _TIME.match(line)
    if found is None:
        return None, line
    return _parse_time(found), line[found.end() :].removeprefix(" ")


def _choose_time(own: datetime | None, runners: datetime | None) -> datetime | None:
    """Return a line's own time, or the runner's if the own one has no zone; UTC is assumed if neither has one."""
    time = runners if own is None or (runners and not own.tzinfo) else own
    return time.replace(tzinfo=UTC) if time and not time.tzinfo else time


def _parse_time(found: re.Match[str]) -> datetime | None:
    """Return the time, without a zone where none is written."""
    day, clock, zone = found.groups()
    try:
        return datetime.fromisoformat(f"{day}T{clock.replace(',', '.')}{zone or ''}")
    except ValueError:
        return None


def _from_json(text: str, time: datetime | None) -> LogEntry | None:
    try:
        fields: dict[str, Any] = json.loads(text)
    except ValueError:
        return None

    def field(*names: str) -> str:
        return next((str(fields[n]) for n in names if fields.get(n) is not None), "")

    written, _ = _split_time(field("@timestamp", "timestamp", "time"))
    level = field("severity", "level", "log.level").upper()
    error, above = _find_root_cause(field("stack_trace").splitlines())
    return LogEntry(_choose_time(written, time), _LEVELS.get(level, level), field("message", "msg"), error, above)


def _from_text(text: str, time: datetime | None) -> LogEntry:
    found = _LEVEL.search(text, 0, 60)
    level = found[1] if found else ""
    rest = text[found.end() :] if found else text
    spring = _SPRING.match(rest)
    message = spring["message"] if spring else rest.lstrip(" :]-") or text
    return LogEntry(time, _LEVELS.get(level, level), message)


def _continues_trace(text: str) -> bool:
    """Return whether a line belongs to a stack trace. A level right behind the time is the head of an entry."""
    return not _LEVEL.match(text.lstrip()) and bool(_GOES_ON.match(text) or _ERROR.fullmatch(text))


def _with_errors(record: LogEntry, stack: list[str]) -> LogEntry:
    error, above = (record.error, record.above) if record.error else _find_root_cause(stack)
    return replace(record, error=error, above=above, level=record.level or "ERROR") if error else record


def _find_root_cause(stack: list[str]) -> tuple[str, tuple[str, ...]]:
    """Return the root cause and the exceptions that it caused. Java writes "Caused by" last, Python the error."""
    if any(line.startswith("Traceback ") for line in stack):
        found = [line for line in stack if _PYTHON_LAST.fullmatch(line)]
        return (found[-1] if found else ""), ()
    found = [line.strip() for line in stack if _ERROR.fullmatch(line.strip())]
    chain = [
        line.removeprefix("Caused by: ") for n, line in enumerate(found) if n == 0 or line.startswith("Caused by: ")
    ]
    return (chain[-1], tuple(chain[:-1])) if chain else ("", ())
