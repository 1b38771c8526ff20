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
class Record:
    """One entry of a log; `error` is the root cause of its stack trace as "class: text", or empty."""

    time: datetime | None
    level: str
    logger: str
    message: str
    error: str = ""


def read(lines: Iterable[str]) -> Iterator[Record]:
    """The records in their order; the lines of a stack trace belong to the plain one that they follow."""
    last: Record | None = None
    stack: list[str] = []
    plain = False
    for line in lines:
        time, text = _split(line)
        own, rest = _split(text)  # a runner's time stands before the line's own
        text, time = (rest, own) if own else (text, time)
        record = _from_json(text, time) if text.startswith("{") else None
        if record is None and plain and not own and _goes_on(text):
            stack.append(text)
        elif text.strip():
            if last is not None:
                yield _whole(last, stack)
            plain = record is None
            last = record or _from_text(text, time or (last.time if last else None))
            stack = [text] if plain and _goes_on(text) else []
    if last is not None:
        yield _whole(last, stack)


def since(lines: list[str], moment: datetime) -> list[str]:
    """The lines from a moment on; those without a time of their own go with the one before."""
    for i, line in enumerate(lines):
        found = _TIME.search(line, 0, 80)
        if found and (time := _moment(found)) and time >= moment:
            return lines[i:]
    return []


def _split(line: str) -> tuple[datetime | None, str]:
    found = _TIME.match(line)
    if found is None:
        return None, line
    return _moment(found), line[found.end() :].removeprefix(" ")


def _moment(found: re.Match[str]) -> datetime | None:
    day, clock, zone = found.groups()
    try:
        time = datetime.fromisoformat(f"{day}T{clock.replace(',', '.')}{zone or ''}")
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _from_json(text: str, time: datetime | None) -> Record | None:
    try:
        fields: dict[str, Any] = json.loads(text)
    except ValueError:
        return None

    def field(*names: str) -> str:
        return next((str(fields[n]) for n in names if fields.get(n) is not None), "")

    written, _ = _split(field("@timestamp", "timestamp", "time"))
    level = field("severity", "level", "log.level").upper()
    return Record(
        written or time,
        _LEVELS.get(level, level),
        field("logger", "logger_name"),
        field("message", "msg")[:LONGEST],
        _error(field("stack_trace").splitlines()),
    )


def _from_text(text: str, time: datetime | None) -> Record:
    found = _LEVEL.search(text, 0, 60)
    level = found[1] if found else ""
    rest = text[found.end() :] if found else text
    spring = _SPRING.match(rest)
    logger, message = (spring["logger"], spring["message"]) if spring else ("", rest.lstrip(" :]-") or text)
    return Record(time, _LEVELS.get(level, level), logger, message[:LONGEST])


def _goes_on(text: str) -> bool:
    """Whether a line belongs to a stack trace. A level right behind the time is the head of an entry."""
    return not _LEVEL.match(text.lstrip()) and bool(_GOES_ON.match(text) or _ERROR.fullmatch(text))


def _whole(record: Record, stack: list[str]) -> Record:
    error = record.error or _error(stack)
    return replace(record, error=error, level=record.level or "ERROR") if error else record


def _error(stack: list[str]) -> str:
    """Java writes the root cause last, behind "Caused by"; Python writes the error itself last."""
    if any(line.startswith("Traceback ") for line in stack):
        found = [line for line in stack if _PYTHON_LAST.fullmatch(line)]
        return found[-1][:LONGEST] if found else ""
    found = [line.strip() for line in stack if _ERROR.fullmatch(line.strip())]
    causes = [line.removeprefix("Caused by: ") for line in found if line.startswith("Caused by: ")]
    return (causes[-1] if causes else found[0] if found else "")[:LONGEST]
