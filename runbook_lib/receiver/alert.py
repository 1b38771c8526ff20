"""Parse alerts from Prometheus Alertmanager's webhook (version 4).

A request body is untrusted input: no value becomes a path or a parameter without a check. An alert is refused only if
its status or its start is invalid; a label that cannot be used as it is is cleaned or left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runbook_lib.book import messages
from runbook_lib.book.parameters import validate
from runbook_lib.model.finding import say
from runbook_lib.model.incident import is_reserved
from runbook_lib.model.times import moment
from runbook_lib.model.usage import UsageError, first_problem
from runbook_lib.privacy.redaction import SECRET, redact

#: Maximum bytes of a request's body, or of a file of alerts.
MAX_BODY = 1_000_000
#: Maximum length of an alert's name, which is cut there, and of a label's name in characters; and of a label's value,
#: which is cut there. Prometheus itself has no limit.
MAX_NAME, MAX_VALUE = 128, 1024
#: Maximum length of a time in characters: a parser's time grows faster than the length.
MAX_TIME = 64
#: The alerts that are read of one body, the first ones; a valid body of the maximum size has fewer.
MAX_ALERTS = 10_000
#: The name of an alert without one.
UNNAMED = "alert"
#: The label that names the incident's folder; optional.
INCIDENT_LABEL = "incident"
#: The label that names a target of runbook.toml; optional.
TARGET_LABEL = "runbook_target"
#: The labels that people read, in pages, messages and names of folders.
_SHOWN = {"alertname", INCIDENT_LABEL, TARGET_LABEL}

#: Control characters, and what cannot be encoded.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_log = logging.getLogger(__name__)


class BadAlert(Exception):
    """The body is not a valid alert; the message is one line that names the field."""


@dataclass(frozen=True)
class Alert:
    """One alert of a group."""

    name: str
    firing: bool
    fingerprint: str
    labels: Mapping[str, str]
    summary: str
    starts_at: pd.Timestamp
    group: str
    """Alertmanager's group key; alerts of one group belong to one incident."""
    note: str = ""
    """What people must know of how the alert is handled; "" for nothing."""
    asked: str = ""
    """The incident's name as the label has it, where the incident has another one."""

    @property
    def incident(self) -> str:
        """Return the incident that the alert's label names, or ""."""
        return self.labels.get(INCIDENT_LABEL, "")

    @property
    def target(self) -> str:
        """Return the target that the alert's label names, or ""; it may be unknown."""
        return self.labels.get(TARGET_LABEL, "").strip()[:MAX_NAME]

    @property
    def title(self) -> str:
        """Return the alert's name with its note."""
        return self.name + (f" ({self.note})" if self.note else "")

    @property
    def line(self) -> str:
        """Return the alert as a line of the incident's timeline."""
        state = "firing" if self.firing else "resolved"
        named = messages.text(say("alert.renamed", named=self.asked, incident=self.incident)) if self.asked else ""
        return f"{self.name} {state}" + "".join(f": {text}" for text in (self.note, named, self.summary) if text)


class _Alert(BaseModel):
    """An element of the webhook's `alerts`; unused fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    status: Literal["firing", "resolved"]
    labels: dict[str, Any]
    annotations: Any = None
    startsAt: str = Field(max_length=MAX_TIME)
    fingerprint: Any = None

    @field_validator("startsAt")
    @classmethod
    def _check_time(cls, value: str) -> str:
        moment(value, zoned=True)
        return value

    def alert(self, group: str, changed: set[str]) -> Alert:
        """Return the alert; without a fingerprint its labels tell it from others.

        Add the labels that are not used as they were sent to `changed`.
        """
        labels = _clean_labels(self.labels)
        asked = labels.get(INCIDENT_LABEL, "")
        if asked:
            labels[INCIDENT_LABEL] = _incident_id(asked, _text_of(self.labels[INCIDENT_LABEL]))
            asked = "" if labels[INCIDENT_LABEL] == asked else asked[:MAX_NAME]
        changed.update(n for n in {*labels, *self.labels} if labels.get(n) != self.labels.get(n))
        texts = self.annotations if isinstance(self.annotations, dict) else {}
        summary = next((t for n in ("summary", "description") if (t := texts.get(n)) and isinstance(t, str)), "")
        fingerprint = self.fingerprint if isinstance(self.fingerprint, str) else ""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", fingerprint):
            own = {name: _text_of(value) for name, value in sorted(self.labels.items())}
            fingerprint = digest(fingerprint or json.dumps(own))
        return Alert(
            name=labels["alertname"],
            asked=asked,
            firing=self.status == "firing",
            fingerprint=fingerprint,
            labels=labels,
            summary=_CONTROL.sub(" ", summary)[:300].strip(),
            starts_at=moment(self.startsAt),
            group=group,
        )


class _Webhook(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    version: Literal["4"]
    groupKey: str = Field(min_length=1)
    alerts: list[Any] = Field(min_length=1)


def log_refused(problem: str) -> None:
    """Log an alert that is refused while others of its body are accepted."""
    _log.warning("an alert is refused: %s", problem)


def from_alertmanager(body: bytes, refuse: Callable[[str], None] = log_refused) -> list[Alert]:
    """Return the valid alerts of a webhook's body, which is one group. Raises BadAlert if none is valid.

    `refuse` is called with the problem of each other one: the sender would repeat a refused body, and its valid alerts
    would never be accepted.
    """
    found, problems, changed = list[Alert](), list[str](), set[str]()
    try:
        sent = _Webhook.model_validate_json(body)
    except ValidationError as e:
        raise BadAlert(_first_problem(e)) from None
    for n, one in enumerate(sent.alerts[:MAX_ALERTS]):
        try:
            found.append(_Alert.model_validate(one).alert(sent.groupKey, changed))
        except ValidationError as e:
            problems.append(_first_problem(e, f"alerts.{n}"))
    if not found:
        raise BadAlert(problems[0])
    if (left := len(sent.alerts) - MAX_ALERTS) > 0:
        problems.append(f"alerts: {left} after the first {MAX_ALERTS} are not read")
    for problem in problems:
        refuse(problem)
    if changed:
        _log.warning("labels are cleaned or left out: %s", _one_line(", ".join(sorted(changed))))
    return found


def read(body: bytes) -> list[Alert]:
    """Return the alerts of a file, a webhook's body. Raises BadAlert."""
    if len(body) > MAX_BODY:
        raise BadAlert(f"longer than {MAX_BODY} bytes")
    return from_alertmanager(body)


def digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def _clean_labels(labels: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels as text of limited length without control characters, and the name of the alert among them.

    A label whose name is too long or not printable is left out. Of those that people read, secrets and user ids are
    masked.
    """
    cleaned = {
        name: _CONTROL.sub(" ", _text_of(value))[:MAX_VALUE]
        for name, value in sorted(labels.items())
        if 0 < len(name.strip()) <= len(name) <= MAX_NAME and not _CONTROL.search(name)
    }
    for name in _SHOWN & cleaned.keys():
        cleaned[name] = redact(cleaned[name], lambda _: SECRET)
    name = cleaned.get("alertname", "")[:MAX_NAME]
    cleaned["alertname"] = name if name.strip() else UNNAMED
    if incident := cleaned.pop(INCIDENT_LABEL, "").strip():
        cleaned[INCIDENT_LABEL] = incident
    return cleaned


def _text_of(value: object) -> str:
    """Return a label's value as text; "" if it is neither text nor a number."""
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, int | float) else ""


def _incident_id(text: str, sent: str) -> str:
    """Return a label's text if it may be an incident's id, else an id of its words and the digest of what was sent."""
    try:
        validate({"incident_id": text})
    except UsageError:
        pass
    else:
        if not is_reserved(text):
            return text
    words = re.sub(r"[^A-Za-z0-9]+", "-", text)[:40].strip("-")
    return free_id(f"{words or INCIDENT_LABEL}-{digest(sent.strip())[:8]}")


def free_id(name: str) -> str:
    """Return an incident's id that a program has made, with a word before it if it is reserved."""
    return f"{INCIDENT_LABEL}-{name}" if is_reserved(name) else name


def _first_problem(e: ValidationError, field: str = "") -> str:
    """Return the first problem of a body, or of a `field` of it, as one line that names the field."""
    where, problem = first_problem(e)
    return f"{'.'.join(filter(None, (field, _one_line(where)))) or 'body'}: {_one_line(problem)}"


def _one_line(said: object) -> str:
    return _CONTROL.sub(" ", str(said))[:200]
