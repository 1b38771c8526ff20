"""Parse alerts from Prometheus Alertmanager's webhook (version 4) or from a CloudEvent.

A request body is untrusted input: every field that is used is validated, other text is truncated, and no value becomes
a path or a parameter without a check.
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

from runbook_lib.parameters import moment, validate
from runbook_lib.usage import UsageError, first_problem

#: Maximum length of an alert's name and of a label's name in characters; and of a value, which is cut there. Prometheus
#: itself has no limit.
MAX_NAME, MAX_VALUE = 128, 1024
MAX_LABELS = 64
#: Maximum number of alerts in one body; Alertmanager sends one group at a time.
MAX_ALERTS = 2000
#: The label that names the incident's folder; optional.
INCIDENT_LABEL = "incident"
#: The label that names a target of runbook.toml; optional.
TARGET_LABEL = "runbook_target"

#: What cannot be encoded; and that with control characters.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
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

    @property
    def incident(self) -> str | None:
        """Return the incident that the alert's label names, or None."""
        return self.labels.get(INCIDENT_LABEL)

    @property
    def line(self) -> str:
        """Return the alert as a line of the incident's timeline."""
        return f"{self.name} {'firing' if self.firing else 'resolved'}" + (f": {self.summary}" if self.summary else "")


class _Alert(BaseModel):
    """An element of the webhook's `alerts`; unused fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    status: Literal["firing", "resolved"]
    labels: dict[str, str] = Field(max_length=MAX_LABELS)
    annotations: dict[str, str] = {}
    startsAt: str
    fingerprint: str = Field("", max_length=64, pattern=r"^[A-Za-z0-9_-]*$")
    groupKey: str = Field("", max_length=4096)

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for name, value in labels.items():
            if not _is_name(name):
                raise ValueError(f"label name {name!r:.60} is empty, too long or contains a control character")
            if _CONTROL.search(value):
                raise ValueError(f"label {name} contains a control character")
        if not _is_name(labels.get("alertname", "")):
            raise ValueError(f"label alertname must be a name of at most {MAX_NAME} characters")
        try:
            if INCIDENT_LABEL in labels:
                validate({"incident_id": labels[INCIDENT_LABEL]})
        except UsageError as e:
            raise ValueError(f"label {INCIDENT_LABEL}: {e}") from None
        return {name: value[:MAX_VALUE] for name, value in labels.items()}

    @field_validator("startsAt")
    @classmethod
    def _check_time(cls, value: str) -> str:
        _parse_time(value)
        return value

    def alert(self, group: str, source: str = "") -> Alert:
        """Return the alert; without a fingerprint its labels tell it from others of its source."""
        labels = dict(sorted(self.labels.items()))
        summary = self.annotations.get("summary") or self.annotations.get("description", "")
        return Alert(
            name=labels["alertname"],
            firing=self.status == "firing",
            fingerprint=self.fingerprint or digest(source + json.dumps(labels)),
            labels=labels,
            summary=_CONTROL.sub(" ", summary)[:300].strip(),
            starts_at=_parse_time(self.startsAt),
            group=group,
        )


class _Webhook(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    version: Literal["4"]
    groupKey: str = Field(min_length=1, max_length=4096)
    alerts: list[Any] = Field(min_length=1, max_length=MAX_ALERTS)


def log_refused(problem: str) -> None:
    """Log an alert that is refused while others of its body are accepted."""
    _log.warning("an alert is refused: %s", problem)


def from_alertmanager(body: bytes, refuse: Callable[[str], None] = log_refused) -> list[Alert]:
    """Return the valid alerts of a webhook's body, which is one group. Raises BadAlert if none is valid.

    `refuse` is called with the problem of each other one: the sender would repeat a refused body, and its valid alerts
    would never be accepted.
    """
    found, problems = list[Alert](), list[str]()
    try:
        sent = _Webhook.model_validate_json(body)
    except ValidationError as e:
        raise BadAlert(_first_problem(e)) from None
    for n, one in enumerate(sent.alerts):
        try:
            found.append(_Alert.model_validate(one).alert(sent.groupKey))
        except ValidationError as e:
            problems.append(_first_problem(e, f"alerts.{n}"))
    if not found:
        raise BadAlert(problems[0])
    for problem in problems:
        refuse(problem)
    return found


def from_cloudevent(headers: Mapping[str, str], body: bytes) -> list[Alert]:
    """Return the alert of a CloudEvent 1.0 in structured or binary mode.

    `data` is one alert as in Alertmanager's `alerts`; alerts with the same `groupKey` belong together. Raises BadAlert.
    """
    from cloudevents.core.bindings.http import HTTPMessage, from_http
    from cloudevents.core.formats.json import JSONFormat
    from cloudevents.core.v1.event import CloudEvent

    try:
        event = from_http(HTTPMessage(headers=dict(headers), body=body), JSONFormat(), CloudEvent)
    except Exception as e:  # the library also passes on its parser's exceptions
        raise BadAlert(f"not a CloudEvent: {_one_line(e)}") from None
    try:
        data = event.get_data()
        data = json.loads(data) if isinstance(data, bytes | str) else data
        sent = _Alert.model_validate(data)
    except ValidationError as e:
        raise BadAlert(f"data: {_first_problem(e)}") from None
    except (ValueError, RecursionError):
        raise BadAlert("data: not JSON") from None
    group = sent.groupKey or f"{event.get_source()}/{sent.labels['alertname']}"
    if _SURROGATE.search(group):
        raise BadAlert("data: groupKey, or the source, is not Unicode text")
    return [sent.alert(group, source=json.dumps(str(event.get_source())))]


def read(body: bytes) -> list[Alert]:
    """Return the alerts of a file: a webhook's body, or a CloudEvent in structured mode. Raises BadAlert."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadAlert("not JSON") from None
    if isinstance(said, dict) and "specversion" in said:
        return from_cloudevent({"content-type": "application/cloudevents+json"}, body)
    return from_alertmanager(body)


def digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_name(text: str) -> bool:
    """Return whether a text can be the name of an alert or a label; it becomes neither a path nor a parameter."""
    return 0 < len(text.strip()) <= len(text) <= MAX_NAME and not _CONTROL.search(text)


def _parse_time(text: str) -> pd.Timestamp:
    """Parse a time with an offset, within the limits of the parameter `detected_at`. Raises ValueError."""
    try:
        time = pd.Timestamp(text)
        if not pd.isna(time) and time.tzinfo is not None:
            return moment(time.tz_convert("UTC").isoformat())
    except (ValueError, TypeError, OverflowError):
        pass
    raise ValueError("not a time like 2026-01-31T03:00:00Z")


def _first_problem(e: ValidationError, field: str = "") -> str:
    """Return the first problem of a body, or of a `field` of it, as one line that names the field."""
    where, problem = first_problem(e)
    return f"{'.'.join(filter(None, (field, _one_line(where)))) or 'body'}: {_one_line(problem)}"


def _one_line(said: object) -> str:
    return _CONTROL.sub(" ", str(said))[:200]
