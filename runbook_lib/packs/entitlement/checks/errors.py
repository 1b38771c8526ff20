"""Group error texts of failed deliveries by fingerprint, and classify each group as a dependency or data error.

The library drain3 (log templates) is not used: its templates depend on the order of the lines, it is no longer
maintained, and it pins old versions of its dependencies; a few patterns are enough for two dozen texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from runbook_lib.checks.context import JudgeInput

Kind = Literal["dependency", "data", "unclear"]

_FOLDS = tuple(
    (re.compile(pattern, re.IGNORECASE), fold)
    for pattern, fold in (
        (r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", "<url>"),
        (r"[^\s@<>\"'=:,;()]+@[^\s@<>\"'=:,;()]+", "<mail>"),
        (r"(\buser_?id\s*[=:]\s*)[^\s,;)}\"']+", r"\1<user>"),
        (r"\buser-[0-9a-z]+\b", "<user>"),
        (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
        (r"\b\d{4}-\d\d-\d\d(?:[t ][\d:.]+)?(?:z\b|[+-]\d\d:\d\d)?", "<time>"),
        (r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b", "<address>"),
        (r"\b[\w.-]+:\d{4,5}\b", "<address>"),
        (r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b", "<id>"),
    )
)
#: A three-digit number that stands alone is a status code and stays in the text; other numbers are folded.
_NUMBER = re.compile(r"(?<![\w.,:#-])([1-5]\d\d)(?![\w-]|[.,:]\d|\s*(?:ms|s|min|bytes|rows)\b)|\d+(?:[.,]\d+)*")

#: A status code: after a word that announces it, or at the start of a sentence.
_STATUS = re.compile(
    r"(?:\b(?:http(?:/\d(?:\.\d)?)?|status(?: code)?|code|answered|returned|responded(?: with)?)\b[ :=]*|^|: )"
    r"([45]\d\d)\b(?![\w-]|[.,:]\d|\s*(?:ms|s|min|bytes|rows)\b)",
    re.IGNORECASE,
)
#: Statuses below 500 that no change of the data mends: the receiver rejects the credentials, or can not serve now.
_DENIED_STATUSES = ("401", "403", "407")
_RETRYABLE_STATUSES = ("408", "425", "429", *_DENIED_STATUSES)
#: What the text of a failed send says, and its observation; the first row found in the text counts.
_SEND_ERRORS = tuple(
    (re.compile(pattern, re.IGNORECASE), observation)
    for pattern, observation in (
        (
            r"too many open files|out ?of ?memory|cannot allocate|native thread|(?:can ?not|can't) assign requested",
            "sends.exhausted",
        ),
        (
            r"no such host|unknown ?host|name or service not known|name resolution|(?:can ?not|could not|unable to"
            r"|failed to) resolve|\bdns\b|no address associated",
            "sends.no_host",
        ),
        (r"certificate|\bpkix\b|\bssl|\btls\b|handshake", "sends.no_trust"),
        (r"refused|no route to host|network is unreachable", "sends.refused"),
        (
            r"time[d ]*-?out|did not answer|no answer|reset|broken pipe|closed|aborted|disconnected|unreachable",
            "sends.unanswered",
        ),
    )
)
#: Names and quoted values: their words do not describe the failure.
_NAMES_AND_QUOTES = re.compile(r"\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)|\b\w*_\w*\b")
_DEPENDENCY = re.compile(
    r"time[d ]*-?out|did not answer|no answer|unreachable|unavailable|not available|too many requests|broken pipe"
    r"|connection ?(?:was |is )?(?:refused|reset|closed|aborted|lost|failed)|reset by peer|connect(?:ion)? ?exception"
    r"|(?:can ?not|could not|unable to|failed to) connect|disconnected|bad gateway|\bnetwork\b|\bdns\b|unknown ?host"
    r"|no such host|(?:can ?not|could not|unable to|failed to) resolve|name resolution|rejectedexecution|temporar"
    r"|overload|throttl|rate limit|try again",
    re.IGNORECASE,
)
_DATA = re.compile(
    r"invalid|malformed|\bmissing\b|not found|\bunknown\b|\brequired\b|illegal|unsupported|pars(?:e|ing)\b"
    r"|\bnull|too (?:long|large)|unprocessable|bad request|\brejected\b|no such",
    re.IGNORECASE,
)


def fingerprint(text: object) -> str:
    """Return the text with ids, users, addresses, times and numbers replaced by placeholders; status codes stay.

    >>> fingerprint("receiver answered 503 after 1024 ms for userId=alice at 10.0.0.7:8080")
    'receiver answered 503 after <n> ms for userId=<user> at <address>'
    """
    folded = " ".join(str(text or "").split())
    for pattern, fold in _FOLDS:
        folded = pattern.sub(fold, folded)
    return _NUMBER.sub(lambda m: m[1] or "<n>", folded)[:200]


def text_kind(text: object) -> Kind:
    """Classify a text by its words: a failed dependency, unacceptable data, or unclear.

    >>> text_kind("receiver answered 503"), text_kind("receiver answered 400"), text_kind("oops")
    ('dependency', 'data', 'unclear')
    """
    words = str(text or "")
    if status := _STATUS.search(words):
        return "dependency" if status[1].startswith("5") or status[1] in _RETRYABLE_STATUSES else "data"
    words = _NAMES_AND_QUOTES.sub("", words)
    if _DEPENDENCY.search(words):
        return "dependency"
    return "data" if _DATA.search(words) else "unclear"


def classify_send(text: object) -> str:
    """Return the observation of what the text of a failed send says; "" for a data error and an unknown text.

    A status is the receiver's own word. Files, memory and names are the worker's own; what else failed may be either's.

    >>> classify_send("receiver answered 503"), classify_send("receiver unreachable: Connection refused")
    ('sends.answered', 'sends.refused')
    """
    words = str(text or "")
    if status := _STATUS.search(words):
        if status[1] in _DENIED_STATUSES:
            return "sends.denied"
        return "sends.answered" if text_kind(words) == "dependency" else ""
    return next((observation for pattern, observation in _SEND_ERRORS if pattern.search(words)), "")


@dataclass(frozen=True)
class ErrorCluster:
    """Dead letters with one error text; `n` is an estimate where they are a sample."""

    error: str
    kind: Kind
    shape: Literal["burst", "long", "few"]
    n: float
    first: pd.Timestamp
    last: pd.Timestamp
    users: int
    top_user: float
    types: int
    top_type: str


def cluster_errors(letters: pd.DataFrame, given: JudgeInput, sent: pd.DataFrame | None = None) -> list[ErrorCluster]:
    """Group dead letters (created_at, error_message, user_id, event_type, total) by text, most frequent first.

    `sent` (minute, n) is the number of other notifications sent per minute.
    """
    if letters.empty:
        return []
    weight = weight_of(letters)
    minutes = set(sent[sent["n"] > 0]["minute"]) if sent is not None and {"minute", "n"} <= set(sent.columns) else set()
    found = [
        _build_cluster(str(error), group, weight, minutes, given)
        for error, group in letters.groupby(letters["error_message"].map(fingerprint), sort=False)
    ]
    return sorted(found, key=lambda c: -c.n)


def weight_of(sample: pd.DataFrame) -> float:
    """Return how many rows each row of a sample represents, from its column `total`."""
    total = pd.to_numeric(sample["total"], errors="coerce").max() if len(sample) and "total" in sample else None
    return max(float(total) / len(sample), 1.0) if total is not None and total == total else 1.0


def _build_cluster(
    error: str, letters: pd.DataFrame, weight: float, sent: set[pd.Timestamp], given: JudgeInput
) -> ErrorCluster:
    n = len(letters) * weight
    at = pd.to_datetime(letters["created_at"], utc=True)
    letters = letters[at >= at.max() - pd.Timedelta(days=given.number("window.longest"))]
    at = at[letters.index]
    users = letters["user_id"].dropna().value_counts()
    types = letters["event_type"].dropna().value_counts()
    top_user, top_type = (float(v.iloc[0] / v.sum()) if len(v) else 0.0 for v in (users, types))
    one_user = n >= given.number("errors.user_many") and top_user >= given.number("errors.user_share")
    one_type = n >= given.number("errors.type_many") and top_type >= given.number("errors.type_share")
    shape = _classify_shape(at, n, given)
    between = pd.date_range(at.min().floor("min"), at.max().floor("min"), freq="min")
    others_pass = sum(minute in sent for minute in between) >= given.number("errors.pass_share") * len(between)
    return ErrorCluster(
        error=error,
        kind=_classify_kind(text_kind(error), shape, one_user, one_type, others_pass),
        shape=shape,
        n=n,
        first=at.min(),
        last=at.max(),
        users=len(users),
        top_user=top_user,
        types=len(types),
        top_type=str(types.index[0]) if len(types) else "",
    )


def _classify_shape(at: pd.Series[pd.Timestamp], n: float, given: JudgeInput) -> Literal["burst", "long", "few"]:
    counts = np.bincount((at - at.min()).dt.total_seconds().to_numpy().astype(int) // 60)
    busiest = int(given.number("errors.busiest"))
    # A burst within a long series is "long"; a few late rows after a burst are still "burst".
    beside = np.sort([i for i in np.argsort(-counts, kind="stable")[busiest:] if counts[i] > 0])
    long = len(beside) >= given.number("errors.long_minutes")
    if long and beside[-1] - beside[0] >= given.number("errors.long_span"):
        return "long"
    return "burst" if n >= given.number("errors.user_many") else "few"


def _classify_kind(words: Kind, shape: str, one_user: bool, one_type: bool, others_pass: bool) -> Kind:
    if words == "data":
        return "data"
    if words == "dependency":
        # A failed dependency affects all users; errors of one user over a long time come from the data.
        return "data" if one_user and shape == "long" else "dependency"
    if one_user or (one_type and shape != "burst") or (others_pass and shape == "long"):
        return "data"
    return "dependency" if shape == "burst" and not others_pass else "unclear"
