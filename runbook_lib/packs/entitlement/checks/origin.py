"""7.2: the failure mode that caused the incident, by the verdicts of its runs, or candidates from the tables alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.book.messages import VERBATIM
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Text, Value, judged, say, unknown
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.checks import past
from runbook_lib.packs.entitlement.checks.incident import OWN, kept_run, logs_of, timed
from runbook_lib.store.lines import RunLine
from runbook_lib.store.run import Run

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The confidences of a verdict, the lowest first.
CONFIDENCES = ("none", "low", "medium", "high")
STEP_COLUMNS = ["name", "section", "step", "id", "weight", "status", "headline_en", "headline_ja"]


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


def collect_origin(rb: Context) -> Frames:
    """7.2: read the verdict of every command, and every finding that supports or contradicts a failure mode.

    Frames: verdicts (fields of `VerdictRow`), modes (of `Mode`), steps (`STEP`), unread (name: text), known (id; en,
    ja: text), episodes (those of 7.1).
    """
    logs = logs_of(rb.archive)
    runs = [(line, kept_run(rb.archive, line)) for line in logs.runs if line.section != OWN]
    concluded = [(v.name, v.started, v.verdict) for v in logs.verdicts if v.sections != (OWN,)]
    if not concluded:
        concluded = [(line.name, line.started, run.verdict) for line, run in runs if run and run.concluded]
    verdicts = [VerdictRow(name, at, v.status.name, v.stuck_at, v.confidence) for name, at, v in concluded]
    modes = [RankedModeRow(name, m.id, m.score) for name, _, v in concluded for m in v.failure_modes]
    frames = {
        "verdicts": timed(rows.frame(verdicts, VerdictRow), "started"),
        "modes": rows.frame(modes, RankedModeRow),
        "steps": pd.DataFrame(list(_evidence_rows(runs, rb.catalog.failure_modes)), columns=STEP_COLUMNS),
        "unread": pd.DataFrame({"name": [line.name for line, run in runs if run is None]}, dtype=object),
    }
    if impact := next((f for f in rb.given().earlier if f.step == "7.1"), None):
        frames["spells"] = impact.frames.get("spells", pd.DataFrame())
    return frames | {"known": pd.DataFrame([(m.id, m.en, m.ja) for m in rb.catalog.failure_modes.values()],
                                           columns=["id", "en", "ja"])}  # fmt: skip


def _evidence_rows(runs: Sequence[tuple[RunLine, Run | None]], modes: Collection[str]) -> Iterator[dict[str, Any]]:
    for line, run in runs:
        for f in run.findings if run else ():
            words = {f"headline_{lang}": messages.text(f.headline, lang) for lang in messages.LANGUAGES}
            for signal in f.signals:
                if signal.about in modes:
                    yield {"name": line.name, "section": line.section, "step": f.step, "id": signal.about,
                           "weight": float(signal.weight), "status": f.status.name, **words}  # fmt: skip


def deciding_verdict(verdicts: list[VerdictRow], deciding: Collection[str] = ()) -> VerdictRow | None:
    """Return the verdict that decides: the worst one, then the one with the highest confidence, then the earliest.

    Those that name a failure mode (`deciding`) come before all others: a first look may be undecided, and the one after
    the recovery has nothing left to name.
    """

    def weight(v: VerdictRow) -> tuple[bool, int, int]:
        return v.name in deciding, Status[v.status].rank, CONFIDENCES.index(v.confidence)

    bad = [v for v in verdicts if v.status in Status.__members__ and v.status != "OK"]
    bad.sort(key=lambda v: v.started or pd.Timestamp.max.tz_localize("UTC"))
    return max(bad, key=weight, default=None)


def judge_origin(frames: Frames, given: JudgeInput) -> Finding:
    """7.2: name the failure mode that stands out in the deciding verdict, with the evidence for and against it."""
    verdicts = rows.each(frames.get("verdicts"), VerdictRow)
    modes = sorted(rows.each(frames.get("modes"), RankedModeRow), key=lambda m: -m.score)
    naming = {v.name for v in verdicts if _names_a_mode(v, modes, given)}
    first = deciding_verdict(verdicts, naming) or VerdictRow()
    top = [m for m in modes if m.name == first.name]
    if not top and (seen := observe_first_episode(frames, given)):
        return _judge_by_tables(given, *seen)
    if not verdicts:
        return unknown("", Reason.NO_DATA, say("postmortem.no_runs"))
    stands_out = first.name in naming
    top = top[: int(given.number("origin.candidates"))]
    candidates = [m.id for m in top]
    named = {m.name: m.id for m in reversed(modes)}  # the mode with the highest score of each verdict
    others = [m.id for m in modes if named[m.name] == m.id and m.id not in candidates]
    elsewhere = [(id_, "named_elsewhere", next(m.score for m in modes if m.id == id_)) for id_ in dict.fromkeys(others)]
    shown = pd.DataFrame(
        [(m.id, "origin" if stands_out and m is top[0] else "candidate", m.score) for m in top] + elsewhere,
        columns=["id", "role", "score"],
    )
    steps = table(frames, "steps", *STEP_COLUMNS)
    evidence = steps[steps["id"].isin([*candidates, *others])].drop_duplicates(["name", "step", "id"])
    unread = table(frames, "unread", "name")
    key = "postmortem.origin" if stands_out else "postmortem.inconclusive" if top else "postmortem.no_mode"
    return judged(
        say(
            key,
            mode=_format_mode(frames, candidates[0]) if top else "-",
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


def _names_a_mode(verdict: VerdictRow, modes: Sequence[RankedModeRow], given: JudgeInput) -> bool:
    """Return whether a verdict is sure of a failure mode, which leads the next one; `modes` come by their score."""
    scores = [m.score for m in modes if m.name == verdict.name] + [0.0, 0.0]
    lead = round(scores[0] - scores[1], 3)  # scores have three places
    leads = scores[0] >= given.number("origin.score") and lead >= given.number("origin.lead")
    return leads and verdict.confidence in ("medium", "high")


def observe_first_episode(frames: Frames, given: JudgeInput) -> tuple[str, past.Episode] | None:
    """Return the observation that the first episode of the incident allows, and the episode; None without an episode.

    A row stores the number of its failed tries. A row that no worker claimed has none, nor has one whose try hung.
    """
    found = rows.each(frames.get("spells"), past.Episode)
    first = next((s for s in found if s.since is not None), None)
    if first is None or first.since is None:
        return None
    together = first.since + pd.Timedelta(seconds=given.number("past.together"))
    begun = {s.queue: s for s in found if s.since is not None and s.since <= together}
    if {"outbox", "notifications"} <= begun.keys():
        return "past.both_stood", first
    queue = next(queue for queue in past.QUEUES if queue in begun)
    if queue == "broker":
        return "past.processing_stood", begun[queue]
    failed = begun[queue].tried >= given.number("tries.pattern")
    names = {"outbox": ("past.publishing_stood", "past.publishing_failed"),
             "notifications": ("past.sending_stood", "past.sending_failed")}  # fmt: skip
    return names[queue][failed], begun[queue]


def _judge_by_tables(given: JudgeInput, observation: str, episode: past.Episode) -> Finding:
    """Judge by the tables alone: they show which queue grew first and whether tries failed, never the failure mode."""
    signals = sorted(given.evidence(observation), key=lambda s: -s.weight)
    modes = [s for s in signals if s.about in given.catalog.failure_modes and s.weight > 0]
    places = [s.about for s in signals if s.about in given.catalog.places]
    shown = pd.DataFrame([(s.about, "candidate", s.weight) for s in modes], columns=["id", "role", "score"])
    facts = {"n": episode.slow, "tried": episode.tried, "queue": past.queue_name(episode.queue)}
    return judged(
        say("postmortem.by_the_past", why=say(f"postmortem.{observation}", **facts),
            candidates=", ".join(s.about for s in modes)),
        [
            Value("origin", None),
            Value("candidates", ", ".join(s.about for s in modes)),
            Value("confidence", "low"),
            Value("stuck_at", None),
            Value("undecided", ", ".join(places)),
        ],
        at_least=Status.WARNING,
        notes=(say("postmortem.past_note"),),
        frames={"candidates": shown},
        show=("candidates",),
    )  # fmt: skip


class ModeTitle(rows.Row):
    """A failure mode's title."""

    id: str = ""
    en: str = ""
    ja: str = ""


def _format_mode(frames: Frames, id_: str) -> Text:
    title = next((k for k in rows.each(frames.get("known"), ModeTitle) if k.id == id_), ModeTitle())
    return say(VERBATIM, en=f"{id_} {title.en}".strip(), ja=f"{id_} {title.ja}".strip())


CHECKS: tuple[Check, ...] = (Check("7.2", collect_origin, judge_origin),)
