"""Fold the texts of errors into fingerprints, and read logins from the lines of a log.

The library drain3 (log templates) is not used: its templates depend on the order of the lines, it is no longer
maintained, and it pins old versions of its dependencies; a few patterns are enough for two dozen texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal, NamedTuple, cast

import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.model import rows
from runbook_lib.packs.logs import PACK
from runbook_lib.sources.logs import LogEntry

Kind = Literal["dependency", "data", "unclear"]

_ERROR_TEXT, _NAMES = patterns.source(PACK, "error text"), patterns.source(PACK, "names")
_STATUS, _ERROR_WORDS = patterns.source(PACK, "status"), patterns.source(PACK, "error words")
_MAX_DETAIL = 160


def fingerprint(text: object) -> str:
    """Return the text with ids, users, addresses, times and numbers replaced by placeholders; status codes stay.

    >>> fingerprint("receiver answered 503 after 1024 ms for userId=alice at 10.0.0.7:8080")
    'receiver answered 503 after <n> ms for userId=<user> at <address>'
    """
    return _ERROR_TEXT.fold(" ".join(str(text or "").split()))[:200]


def status_code(text: object) -> str:
    """Return the HTTP status that a text names; "" if it names none."""
    return _STATUS.find(str(text or "")).detail


def kind_by_words(text: object) -> Kind:
    """Classify a text without a status by its words: a failed dependency, unacceptable data, or unclear."""
    return cast("Kind", _ERROR_WORDS.find(_NAMES.fold(str(text or ""))).kind or "unclear")


class LoginResult(StrEnum):
    """The result of a login."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # the server answered, and did not let the service in
    UNREACHED = "unreached"  # no server answered at the service's address


class Attempt(rows.Row):
    """Logins to one server with one result in a service's log: their number, and the last one's time and text."""

    server: str = ""
    came: str = ""
    n: int = 0
    last: pd.Timestamp | None = None
    detail: str = ""


class LoginSign(NamedTuple):
    """What shows logins to some servers: kinds of `LoginResult` in the text of an error, or else in a message."""

    servers: tuple[str, ...]
    in_error: bool
    source: patterns.Source


def read_attempts(records: Iterable[LogEntry], signs: Iterable[LoginSign]) -> pd.DataFrame:
    """Read the logins in a service's log; a row for each server and result (fields of `Attempt`)."""
    found: dict[tuple[str, str], Attempt] = {}
    for record in records:
        if record.time is None:
            continue
        for server, came, detail in _match_logins(record, signs):
            before = found.get((server, came), Attempt())
            last = max(pd.Timestamp(record.time), before.last or pd.Timestamp(record.time))
            found[server, came] = Attempt(server, came, before.n + 1, last, detail[:_MAX_DETAIL])
    return rows.frame(found.values(), Attempt)


def _match_logins(record: LogEntry, signs: Iterable[LoginSign]) -> list[tuple[str, LoginResult, str]]:
    text = " ".join((record.message, *record.above, record.error))
    for servers, in_error, source in signs:
        if (found := source.find(text if in_error else record.message)).kind:
            return [(server, LoginResult(found.kind), found.detail if in_error else "") for server in servers]
    return []
