"""7.4: what will be changed for good, by whom and by when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.dossier import mandatory
from runbook_lib.model.finding import Finding, Frames, Status, Value, judged, say
from runbook_lib.model.frames import table
from runbook_lib.store.archive import Archive

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


def collect_measures(rb: Context) -> Frames:
    """7.4: what the failure mode's entry suggests, and what a person has entered into the draft.

    Frames: suggested (id; kind, text: text), entered (kind, measure, owner, due: text; whole: flag).
    """
    origin = next((f for f in rb.given().earlier if f.step == "7.2"), None)
    ids = str((origin and (origin.value("origin") or origin.value("candidates"))) or "").split(", ")
    suggested = [
        {"id": m.id, "kind": kind, "text": text}
        for m in (rb.catalog.failure_modes[i] for i in ids[:2] if i in rb.catalog.failure_modes)
        for kind, text in (("measure", m.detection), ("control", m.mitigation))
    ]
    return {
        "suggested": pd.DataFrame(suggested, columns=["id", "kind", "text"]),
        "entered": pd.DataFrame(mandatory.measures_of(_read_draft(rb.archive)), columns=list(mandatory.MEASURE)),
    }


def _read_draft(archive: Archive) -> str:
    try:
        return archive.read(mandatory.MARKDOWN).decode(errors="replace")
    except OSError:
        return ""


def judge_measures(frames: Frames, given: JudgeInput) -> Finding:
    """7.4: what will be changed, by whom and by when; only a person can say so."""
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


CHECKS: tuple[Check, ...] = (Check("7.4", collect_measures, judge_measures),)
