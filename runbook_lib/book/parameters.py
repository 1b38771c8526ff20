"""The parameters of notebooks, validated before anything starts.

The names are those of the notebook's `parameters` cell, read with `ast`; an unknown one is refused, because a
misspelt parameter would silently mean the default. Values are checked by type and range.
"""

from __future__ import annotations

import ast
import os
import pwd
import re
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from runbook_lib.book import pack
from runbook_lib.model.incident import ADHOC
from runbook_lib.model.times import moment
from runbook_lib.model.usage import UsageError, did_you_mean, first_problem
from runbook_lib.privacy.masking import Masker

#: How far another machine's clock may be ahead of this one's: what it tells is not yet the future.
SKEW = pd.Timedelta(minutes=5)

#: The longest window.
LONGEST = pd.Timedelta(days=7)

#: Texts that name or date something.
_CHECKED = ("incident_id", "target", "detected_at", "from_time", "to_time")
_INCIDENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


#: The parameters that carry an action out, which a command to copy leaves out.
ACTING = ("execute", "approved_by", "reason", "wait_s")


class Parameters(BaseModel):
    """The parameters that notebooks declare, a pack's own beside these; a notebook takes those of its own cell only."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    incident_id: str = Field(ADHOC, description="the dossier that this run belongs to")
    target: str = Field("default", description="a target of runbook.toml")
    window_minutes: int = Field(
        60, ge=1, le=LONGEST // pd.Timedelta(minutes=1), description="how far rates, delays and charts look back"
    )
    lang: Literal["ja", "en"] = Field("en", description='"en" or "ja"')
    detected_by: Literal["user_report", "alert", "slo"] | None = Field(
        None, description='"user_report", "alert" or "slo"'
    )
    detected_at: str | None = Field(None, description='when it was noticed, such as "2025-01-31T03:00:00Z"')
    from_time: str | None = Field(None, description="start of the window; None: as the dossier tells")
    to_time: str | None = Field(None, description="end of the window; None: as the dossier tells")

    # What an action is asked to do, and on whose word; without `execute` it is only looked at.
    execute: bool = Field(False, description="True: run the action; False: a dry run")
    approved_by: str | None = Field(None, min_length=2, max_length=80, description="who approved it")
    reason: str | None = Field(None, min_length=5, max_length=400, description="why, for the postmortem")
    wait_s: float = Field(60, ge=5, le=900, description="how long to wait for the effect, in seconds")

    @field_validator("incident_id")
    @classmethod
    def _incident_names_a_folder(cls, value: str) -> str:
        if not _INCIDENT.fullmatch(value) or ".." in value:
            raise ValueError("use letters, digits, '.', '_' and '-' only, at most 64, no '..'")
        return value

    @field_validator("detected_at", "from_time", "to_time")
    @classmethod
    def _is_a_time(cls, value: str | None) -> str | None:
        if value is not None:
            now = pd.Timestamp.now("UTC")
            if moment(value, zoned=True) > now + SKEW:
                raise ValueError(f"that is in the future: it is {now.isoformat(timespec='seconds')}")
        return value

    @field_validator("to_time")
    @classmethod
    def _ends_after_it_begins(cls, value: str | None, info: ValidationInfo) -> str | None:
        begin = info.data.get("from_time")
        if value is not None and begin is not None and not moment(begin) < moment(value) <= moment(begin) + LONGEST:
            raise ValueError(f"it must be after from_time={begin}, by {LONGEST.days} d at most")
        return value


def declared_names(notebook: Path) -> list[str]:
    """Return the names that the notebook's `parameters` cell assigns."""
    import nbformat  # its schema takes longer than all else that a question needs

    nb = nbformat.read(notebook, as_version=4)
    cells = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    if not cells:
        raise UsageError(f"{notebook.name} has no cell tagged 'parameters'")
    names: list[str] = []
    for node in ast.parse(cells[0].source).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names += [t.id for t in targets if isinstance(t, ast.Name)]
    return names


def parameters_class() -> type[Parameters]:
    """Return the class of the parameters of the active runbook: the engine's and those of its packs."""
    own = pack.active_runbook().every("parameters")
    return type("Parameters", own, {}) if len(own) > 1 else own[0] if own else Parameters


def free_texts() -> tuple[str, ...]:
    """Return the parameters that are free text, in which a person may name anybody."""
    fields = parameters_class().model_fields.items()
    return tuple(
        name
        for name, field in fields
        if name not in _CHECKED
        and field.annotation in (str, str | None)
        and not any(getattr(rule, "pattern", None) for rule in field.metadata)
    )


def mask_free_texts(values: dict[str, Any], masker: Masker) -> dict[str, Any]:
    """Return the values with user ids and secrets removed from their free texts."""
    texts = {name: text for name in free_texts() if isinstance(text := values.get(name), str)}
    return values | {name: masker.scrub_once(text) for name, text in texts.items()}


def validate(values: dict[str, Any], names: list[str] | None = None) -> Parameters:
    """Check the values, and that each name is among `names` (a notebook's own) where given.

    Raises UsageError with one line that says which parameter, what is wrong and what was meant.
    """
    model = parameters_class()
    known = names if names is not None else list(model.model_fields)
    for name in values:
        if name not in known:
            pack.hook("gone")(name)
            raise UsageError(f"unknown parameter '{name}': {did_you_mean(name, known)}")
    try:
        return model(**{k: v for k, v in values.items() if v is not None})
    except ValidationError as e:
        name, problem = first_problem(e)
        raise UsageError(f"parameter {name}={values.get(name)!r:.80}: {problem}") from None


#: Who runs this where the operating system has no login, as in a pod.
UNKNOWN = "unknown"


def whoami() -> str:
    """Return the login of the process's user, or `UNKNOWN`."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return UNKNOWN
