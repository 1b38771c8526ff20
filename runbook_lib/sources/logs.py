"""The lines of a workload's log as records: a JSON object per line, or plain text. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

#: How much of a message, and of an exception's text, is kept.
LONGEST = 300

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:[.,]\d{1,9})?) ?(Z|[+-]\d\d:?\d\d)?")
_LEVEL = re.compile(r"\b(TRACE|DEBUG|INFO|WARN(?:ING)?|ERROR|FATAL|CRITICAL|SEVERE)\b")
_LEVELS = {"WARNING": "WARN", "FATAL": "ERROR", "CRITICAL": "ERROR", "SEVERE": "ERROR"}
# What Spring Boot writes between the level and the message: pid --- [application] [thread] logger :
_SPRING = re.compile(r"\s*\d+ --- (?:\[[^\]]*\]\s*)*(?P<logger>\S+)\s+: (?P<message>.*)")
_ERROR = re.compile(
    r"(?:Caused by: )?[A-Za-z_][\w.$]*(?:Error|Exception|Throwable|Shutdown|Violation|Timeout)(?:: .*)?"
)
_PYTHON_LAST = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?")
_GOES_ON = re.compile(r"\s+\S|Caused by: |Suppressed: |Traceback |The above exception |During handling ")


@dataclass(frozen=True)
class LogEntry:
    """One entry of a log.

    `error` is the root cause of its stack trace as "class: text", or empty; `above` are the exceptions that it caused,
    the outermost first.
    """

    time: datetime | None
    level: str
    logger: str
    message: str
    error: str = ""
    above: tuple[str, ...] = ()


def read(lines: Iterable[str]) -> Iterator[LogEntry]:
    """Yield the entries in their order; the lines of a stack trace belong to the plain entry before them."""
    last: LogEntry | None = None
    stack: list[str] = []
    plain = False
    for line in lines:
        time, text = _split_time(line)
        own, rest = _split_time(text)  # a runner's time stands before the line's own
        text, time = rest if own else text, _choose_time(own, time)
        record = _from_json(text, time) if text.startswith("{") else None
        if record is None and plain and not own and _continues_trace(text):
            stack.append(text)
        elif text.strip():
            if last is not None:
                yield _with_errors(last, stack)
            plain = record is None
            last = record or _from_text(text, time or (last.time if last else None))
            stack = [text] if plain and _continues_trace(text) else []
    if last is not None:
        yield _with_errors(last, stack)


def lines_since(lines: list[str], moment: datetime) -> list[str]:
    """Return the lines from a moment on; a line without a time belongs to the one before."""
    for i, line in enumerate(lines):
        found = _TIME.search(line, 0, 80)
        if found and (time := _choose_time(_parse_time(found), None)) and time >= moment:
            return lines[i:]
    return []


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
    message = field("message", "msg")[:LONGEST]
    return LogEntry(
        _choose_time(written, time), _LEVELS.get(level, level), field("logger", "logger_name"), message, error, above
    )


def _from_text(text: str, time: datetime | None) -> LogEntry:
    found = _LEVEL.search(text, 0, 60)
    level = found[1] if found else ""
    rest = text[found.end() :] if found else text
    spring = _SPRING.match(rest)
    logger, message = (spring["logger"], spring["message"]) if spring else ("", rest.lstrip(" :]-") or text)
    return LogEntry(time, _LEVELS.get(level, level), logger, message[:LONGEST])


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
        return (found[-1][:LONGEST] if found else ""), ()
    found = [line.strip() for line in stack if _ERROR.fullmatch(line.strip())]
    chain = [
        line.removeprefix("Caused by: ")[:LONGEST]
        for n, line in enumerate(found)
        if n == 0 or line.startswith("Caused by: ")
    ]
    return (chain[-1], tuple(chain[:-1])) if chain else ("", ())
