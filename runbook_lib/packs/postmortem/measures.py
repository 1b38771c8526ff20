"""What will be changed for good, by whom and by when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.triage import find_earlier
from runbook_lib.dossier import mandatory
from runbook_lib.model.finding import Finding, Frames, Status, Value, judged, say
from runbook_lib.model.frames import table

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


def collect_measures(rb: Context, origin: str) -> Frames:
    """Return what the failure modes of the step `origin` suggest, and what a person has entered into the draft.

    Frames: suggested (id; kind, text: text), entered (kind, measure, owner, due: text; whole: flag).
    """
    found = find_earlier(rb.given(), origin)
    ids = str((found and (found.value("origin") or found.value("candidates"))) or "").split(", ")
    suggested = [
        (mode.id, kind, text)
        for mode in (rb.catalog.failure_modes[i] for i in ids[:2] if i in rb.catalog.failure_modes)
        for kind, text in (("measure", mode.detection), ("control", mode.mitigation))
    ]
    try:
        draft = rb.archive.read(mandatory.MARKDOWN).decode(errors="replace")
    except OSError:
        draft = ""
    return {
        "suggested": pd.DataFrame(suggested, columns=["id", "kind", "text"]),
        "entered": pd.DataFrame(mandatory.measures_of(draft), columns=list(mandatory.MEASURE)),
    }


def judge_measures(frames: Frames, given: JudgeInput) -> Finding:
    """Judge what will be changed, by whom and by when; only a person can say so."""
    entered = table(frames, "entered", *mandatory.MEASURE)
    whole = entered[entered["whole"].astype(bool)] if len(entered) else entered
    suggested = table(frames, "suggested", "id", "kind", "text")
    return judged(
        say("postmortem.measures" if len(whole) else "postmortem.no_measures", n=len(whole), suggested=len(suggested)),
        [Value("measures.whole", len(whole)), Value("measures.suggested", len(suggested))],
        at_least=Status.OK if len(whole) else Status.WARNING,
        notes=(say("postmortem.measures_note"),),
        show=("entered", "suggested"),
    )
