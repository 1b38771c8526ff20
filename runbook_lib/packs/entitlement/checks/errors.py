"""Group error texts of failed deliveries by fingerprint, and classify each group as a dependency or data error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.checks.context import JudgeInput
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.logs.logs import Kind, fingerprint, kind_by_words, status_code

_STATUS_CODE, _SEND_ERROR = patterns.source(PACK, "status code"), patterns.source(PACK, "send error")


def text_kind(text: object) -> Kind:
    """Classify a text by its words: a failed dependency, unacceptable data, or unclear.

    >>> text_kind("receiver answered 503"), text_kind("receiver answered 400"), text_kind("oops")
    ('dependency', 'data', 'unclear')
    """
    if status := status_code(text):
        return "data" if _STATUS_CODE.find(status).kind == "data" else "dependency"
    return kind_by_words(text)


def classify_send(text: object) -> str:
    """Return the observation of what the text of a failed send says; "" for a data error and an unknown text.

    A status is the receiver's own word. Files, memory and names are the worker's own; what else failed may be either's.

    >>> classify_send("receiver answered 503"), classify_send("receiver unreachable: Connection refused")
    ('sends.answered', 'sends.refused')
    """
    status = status_code(text)
    return (_STATUS_CODE.find(status) if status else _SEND_ERROR.find(str(text or ""))).observation


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
