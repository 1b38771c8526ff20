"""The failure mode that caused an incident, by the verdicts of its runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.book.messages import VERBATIM
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Value, judged, say, unknown
from runbook_lib.model.frames import table
from runbook_lib.packs.postmortem.incident import logs_of, read_runs, timed

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The confidences of a verdict, the lowest first.
CONFIDENCES = ("none", "low", "medium", "high")
STEP_COLUMNS = ["name", "section", "step", "id", "weight", "status", "headline_en", "headline_ja"]
#: The judge of an incident without a verdict that names a failure mode; None if it finds nothing either.
WithoutVerdict = Callable[[Frames, JudgeInput], Finding | None]


class VerdictRow(rows.Row):
    """The verdict of a command."""

    name: str = ""
    started: pd.Timestamp | None = None
    status: str = ""
    stuck_at: str | None = None
    confidence: str = "none"


class RankedModeRow(rows.Row):
    """A failure mode that a verdict ranked."""

    name: str = ""
    id: str = ""
    score: float = 0.0


def collect_verdicts(rb: Context) -> Frames:
    """Return the verdict of every command; of every run if none is recorded.

    Frames: verdicts (fields of `VerdictRow`), modes (of `RankedModeRow`).
    """
    own = (rb.catalog.section_with("postmortem"),)
    found = [(v.name, v.started, v.verdict) for v in logs_of(rb.archive).verdicts if v.sections != own]
    if not found:
        found = [(line.name, line.started, run.verdict) for line, run in read_runs(rb) if run and run.concluded]
    verdicts = [VerdictRow(name, at, v.status.name, v.stuck_at, v.confidence) for name, at, v in found]
    modes = [RankedModeRow(name, m.id, m.score) for name, _, v in found for m in v.failure_modes]
    return {
        "verdicts": timed(rows.frame(verdicts, VerdictRow), "started"),
        "modes": rows.frame(modes, RankedModeRow),
    }


def collect_origin(rb: Context) -> Frames:
    """Return every verdict, and every finding that supports or contradicts a failure mode.

    Frames: those of `collect_verdicts`, steps (`STEP_COLUMNS`), unread (name: text).
    """
    unread = [line.name for line, run in read_runs(rb) if run is None]
    return collect_verdicts(rb) | {
        "steps": pd.DataFrame(list(_list_evidence(rb)), columns=STEP_COLUMNS),
        "unread": pd.DataFrame({"name": unread}, dtype=object),
    }


def _list_evidence(rb: Context) -> Iterator[dict[str, Any]]:
    for line, run in read_runs(rb):
        for f in run.findings if run else ():
            words = {f"headline_{lang}": messages.text(f.headline, lang) for lang in messages.LANGUAGES}
            for signal in f.signals:
                if signal.about in rb.catalog.failure_modes:
                    yield {"name": line.name, "section": line.section, "step": f.step, "id": signal.about,
                           "weight": float(signal.weight), "status": f.status.name, **words}  # fmt: skip


def judge_origin(frames: Frames, given: JudgeInput, without_verdict: WithoutVerdict = lambda *_: None) -> Finding:
    """Name the failure mode that stands out in the deciding verdict, with the evidence for and against it."""
    verdicts = rows.each(frames.get("verdicts"), VerdictRow)
    modes = sorted(rows.each(frames.get("modes"), RankedModeRow), key=lambda m: -m.score)
    naming = {v.name for v in verdicts if _names_a_mode(v, modes, given)}
    first = deciding_verdict(verdicts, naming) or VerdictRow()
    top = [m for m in modes if m.name == first.name]
    if not top and (found := without_verdict(frames, given)):
        return found
    if not verdicts:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    stands_out = first.name in naming
    top = top[: int(given.number("origin.candidates"))]
    candidates = [m.id for m in top]
    leading = {m.name: m.id for m in reversed(modes)}.values()  # the mode with the highest score of each verdict
    scores = [(m.id, "origin" if stands_out and m is top[0] else "candidate", m.score) for m in top]
    scores += [(m.id, "named_elsewhere", m.score) for m in modes if m.id in leading]
    shown = pd.DataFrame(scores, columns=["id", "role", "score"]).drop_duplicates("id", ignore_index=True)
    steps = table(frames, "steps", *STEP_COLUMNS)
    evidence = steps[steps["id"].isin(shown["id"])].drop_duplicates(["name", "step", "id"])
    unread = table(frames, "unread", "name")
    key = "postmortem.origin" if stands_out else "postmortem.inconclusive" if top else "postmortem.no_mode"
    return judged(
        say(
            key,
            mode=_format_mode(candidates[0], given) if top else "-",
            confidence=say(f"confidence.{first.confidence}"),
            candidates=", ".join(f"{m.id} {m.score:.2f}" for m in top) or "-",
            score=top[0].score if top else 0.0,
        ),
        [
            Value("origin", candidates[0] if stands_out else None),
            Value("candidates", ", ".join(candidates) or None),
            Value("confidence", first.confidence),
            Value("stuck_at", first.stuck_at or None),
            Value("located", first.name or None),
        ],
        at_least=Status.OK if stands_out else Status.WARNING,
        notes=(
            say("postmortem.origin_note"),
            *((say("postmortem.unread", names=", ".join(unread["name"].astype(str))),) if len(unread) else ()),
        ),
        frames={"candidates": shown, "evidence": evidence.reset_index(drop=True)},
        show=("candidates", "evidence"),
    )


def _format_mode(id_: str, given: JudgeInput) -> Text:
    mode = given.catalog.failure_modes.get(id_)
    return say(VERBATIM, en=f"{id_} {mode.en}", ja=f"{id_} {mode.ja}") if mode else say(VERBATIM, en=id_, ja=id_)


def deciding_verdict(verdicts: list[VerdictRow], naming: Collection[str] = ()) -> VerdictRow | None:
    """Return the verdict that decides: the worst one, then the one with the highest confidence, then the earliest.

    Those that name a failure mode (`naming`) come before all others: a first look may be undecided, and the one after
    the recovery has nothing left to name.
    """

    def weight(v: VerdictRow) -> tuple[bool, int, int]:
        return v.name in naming, Status[v.status].rank, CONFIDENCES.index(v.confidence)

    bad = [v for v in verdicts if v.status in Status.__members__ and v.status != "OK"]
    bad.sort(key=lambda v: v.started or pd.Timestamp.max.tz_localize("UTC"))
    return max(bad, key=weight, default=None)


def _names_a_mode(verdict: VerdictRow, modes: Sequence[RankedModeRow], given: JudgeInput) -> bool:
    """Return whether a verdict is sure of a failure mode, which leads the next one; `modes` come by their score."""
    scores = [m.score for m in modes if m.name == verdict.name] + [0.0, 0.0]
    lead = round(scores[0] - scores[1], 3)  # scores have three places
    leads = scores[0] >= given.number("origin.score") and lead >= given.number("origin.lead")
    return leads and verdict.confidence in ("medium", "high")
