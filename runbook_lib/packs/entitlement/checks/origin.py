"""7.2 to 7.4: origin, timeline and measures (`packs.postmortem`); without a verdict, candidates from the tables."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.triage import find_earlier
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Status, Value, judged, say
from runbook_lib.packs.entitlement.checks import past
from runbook_lib.packs.postmortem import origin
from runbook_lib.packs.postmortem.measures import collect_measures, judge_measures
from runbook_lib.packs.postmortem.timeline import collect_timeline, judge_timeline

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context


def collect_origin(rb: Context) -> Frames:
    """7.2: read the verdicts and their evidence. Frames: those of the room, spells (the episodes of 7.1)."""
    impact = find_earlier(rb.given(), "7.1")
    episodes = {"spells": impact.frames.get("spells", pd.DataFrame())} if impact else {}
    return origin.collect_origin(rb) | episodes


def judge_origin(frames: Frames, given: JudgeInput) -> Finding:
    """7.2: name the failure mode by the verdicts, else its candidates by the tables."""
    return origin.judge_origin(frames, given, judge_by_tables)


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


def judge_by_tables(frames: Frames, given: JudgeInput) -> Finding | None:
    """Judge by the tables alone: they show which queue grew first and whether tries failed, never the failure mode."""
    if (seen := observe_first_episode(frames, given)) is None:
        return None
    observation, episode = seen
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


CHECKS: tuple[Check, ...] = (
    Check("7.2", collect_origin, judge_origin),
    Check("7.3", partial(collect_timeline, impact="7.1"), judge_timeline),
    Check("7.4", partial(collect_measures, origin="7.2"), judge_measures),
)
