"""A check: `collect` reads the sources, `judge` decides from the frames alone.

`judge` is a pure function: it reads neither a database nor a clock, so a stored run can be judged again from its
frames.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.book import messages, pack
from runbook_lib.book.catalog import Catalog
from runbook_lib.book.queries import Query
from runbook_lib.checks.context import Context, JudgeInput
from runbook_lib.diagnosis.evidence import evidence_from_error, unique
from runbook_lib.model.finding import Finding, Frames, Proposal, Reason, Status, Text, Unseen, say, unknown
from runbook_lib.model.unread import UnreadError
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.view.charts import Chart


#: The frame of what could not be read, a row per part; the part WHOLE is the step itself.
NOT_READ = "not_read"
#: The frame of the sessions for whose locks these parts have waited.
LOCK_HOLDERS = "lock_holders"
NOT_READ_COLUMNS = ["part", "source", "why", "detail", "code"]
WHOLE = ""


Collect = Callable[[Context], Frames]
Judge = Callable[[Frames, JudgeInput], Finding]
DescribeChart = Callable[[Frames, JudgeInput], "Chart | None"]
OnError = Callable[[SourceError, JudgeInput], Finding]


@dataclass(frozen=True)
class Check:
    """The check that answers one step of the runbook.

    A judge may add frames for people to read; they are stored with the collected ones.

    `needs` names the frames without which it judges nothing. What else could not be read becomes a note, evidence
    about its source, and UNKNOWN in place of OK; of the parts in `optional`, which only add to the others, a note.

    `shared` collects frames that several steps of a section use, once for all of them (`Context.shared`); `collect` is
    None where they are all that a step reads.

    `queries` are those that `queries.toml` cannot name: of a room, filled with a system's table.

    `on_error` turns a source's failure into a finding if the failure is itself the result ("too many clients" is
    CRITICAL for the step about connections); it may return UNKNOWN.
    """

    step: str
    collect: Collect | None
    judge: Judge
    charts: tuple[DescribeChart, ...] = ()
    on_error: OnError | None = None
    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    shared: Collect | None = None
    queries: tuple[Query, ...] = ()

    def run(self, rb: Context) -> Finding:
        """Collect and judge. Never raises: a failure becomes the finding."""
        given = rb.given(self.step)
        if rb.recorded is not None:
            if recorded := rb.recorded.get(self.step):
                return self.judge_again(recorded, given)
            return unknown(self.step, Reason.NO_DATA, say("unknown.not_recorded", step=self.step))
        first = len(rb.read_cost.queries)
        at = rb.now()
        frames: Frames = {}
        try:
            frames = rb.masker.frames(self.collected(rb))
            finding = self.finding(frames, given)
        except Exception as e:
            detail = rb.masker.scrub(f"{type(e).__name__}: {e}")
            finding = unknown(self.step, Reason.ERROR, say("unknown.error", detail=detail))
            if os.environ.get("RUNBOOK_DEBUG"):
                raise
        return replace(
            finding,
            frames=frames | finding.frames,
            queries=tuple(rb.read_cost.queries[first:]),
            at=at,
        )

    def collected(self, rb: Context) -> Frames:
        """Collect the frames; if a source fails as a whole, only the frame of that failure."""
        rb = rb.begin(self.step)
        try:
            every = rb.shared(self.step, self.shared) if self.shared else {}
            own = self.collect(rb) if self.collect else {}
            missed = [f[NOT_READ] for f in (every, own) if NOT_READ in f]
            return every | own | ({NOT_READ: pd.concat(missed, ignore_index=True)} if missed else {})
        except SourceError as e:
            e.detail = rb.masker.scrub(e.detail)
            return failure_frames({WHOLE: e})

    def judge_again(self, found: Finding, given: JudgeInput) -> Finding:
        """Judge the same evidence again, with other earlier findings or by another policy."""
        if not found.frames:
            return found
        finding = self.finding(found.frames, given)
        return replace(finding, frames=found.frames | finding.frames, queries=found.queries, at=found.at)

    def finding(self, frames: Frames, given: JudgeInput) -> Finding:
        """Judge the frames; add the parts that could not be read, and the deciding value to the headline.

        If the judge needs a frame or a value that was not read, the finding is UNKNOWN; it may raise the SourceError of
        a part without which it says nothing.
        """
        failed, missed = failures(frames), _list_unseen(frames, self.optional)
        absent = [name for name in self.needs if name not in frames]
        decisive = [part for part in (WHOLE, *absent) if part in failed]
        if frames.keys() <= {NOT_READ, LOCK_HOLDERS}:
            decisive += _declared(failed)
        try:
            if decisive:
                raise failed.pop(decisive[0])
            if absent or not frames:
                judged = unknown("", Reason.NO_DATA, say("unknown.no_data", detail=", ".join(absent) or self.step))
            else:
                judged = self.judge(frames, given)
            judged = self._partly(judged, failed, given)
        except SourceError as e:
            judged = self._of_error(e, given)
        except UnreadError as e:
            judged = self._partly(unknown("", Reason.NO_DATA, say("unknown.unread", detail=str(e))), failed, given)
        if LOCK_HOLDERS in frames:
            judged = pack.hook("lock_holders")(judged, frames[LOCK_HOLDERS], given)
        notes = (n for n in notes_of_failures(_declared(failed)) if n not in judged.notes)
        return replace(
            judged,
            step=self.step,
            headline=with_deciding_value(judged),
            notes=(*judged.notes, *notes),
            proposals=self._place_proposals(judged),
            unseen=unique((*judged.unseen, *missed)),
        )

    @property
    def reads(self) -> str:
        """What it reads, in the words of the function that collects it."""
        return inspect.getdoc(self.collect or self.shared) or ""

    def described_charts(self, frames: Frames, given: JudgeInput) -> Iterator[Callable[[], Chart | None]]:
        """Yield for each chart how it is described; None comes of it where there is nothing to draw."""
        read = {*self.needs} <= frames.keys()
        for describe in self.charts:
            yield partial(describe, frames, given) if read else lambda: None

    def _partly(self, judged: Finding, failed: Mapping[str, SourceError], given: JudgeInput) -> Finding:
        """Return what a judge said without these parts: no longer OK or over, with the evidence of their failures."""
        missed = {part: e for part, e in _declared(failed).items() if part not in self.optional}
        if not missed:
            return judged
        about = (s for e in missed.values() for s in evidence_from_error(e, given.catalog))
        known = replace(judged, signals=unique((*judged.signals, *about)), ended=None)
        if judged.status is not Status.OK and judged.reason is not Reason.NO_DATA:
            return known
        first = next(iter(missed.values()))
        headline = say("unknown.partly", headline=judged.headline, parts=", ".join(missed), detail=first.detail)
        return replace(known, status=Status.UNKNOWN, reason=first.reason, headline=headline)

    def _of_error(self, e: SourceError, given: JudgeInput) -> Finding:
        """Return the finding of this step if its source failed."""
        finding = self.on_error(e, given) if self.on_error else unknown_from_error(e, given.catalog)
        return replace(
            finding,
            signals=unique((*finding.signals, *evidence_from_error(e, given.catalog))),
            unseen=unique((*finding.unseen, Unseen(e.source, e.reason))),
        )

    def _place_proposals(self, finding: Finding) -> tuple[Proposal, ...]:
        """Return its proposals; one of no other section is of this step's."""
        return tuple(replace(p, section=p.section or self.step.rpartition(".")[0]) for p in finding.proposals)


def failure_frames(failed: Mapping[str, SourceError]) -> Frames:
    """Return the frame of failures by part, and that of the sessions for whose locks these parts have waited."""
    holders = [e.holders for e in failed.values() if e.holders is not None and len(e.holders)]
    held = {LOCK_HOLDERS: pd.concat(holders).drop_duplicates(["pid", "gid"], ignore_index=True)} if holders else {}
    return {NOT_READ: failure_frame(failed)} | held


def failure_frame(failed: Mapping[str, SourceError]) -> pd.DataFrame:
    """Return failures by part as a frame: what `failures` reads back."""
    rows = [[part, e.source, e.reason.value, e.detail, e.code] for part, e in failed.items()]
    return pd.DataFrame(rows, columns=NOT_READ_COLUMNS)


def failures(frames: Frames) -> dict[str, SourceError]:
    """Return the failures that `parts.Parts` stored, by part."""
    kept = frames.get(NOT_READ)
    if kept is None or kept.empty:
        return {}
    return {
        str(r["part"]): SourceError(r["source"], Reason(r["why"]), str(r["detail"]), str(r["code"]))
        for r in kept.to_dict("records")
    }


def _list_unseen(frames: Frames, optional: Collection[str]) -> list[Unseen]:
    """Return what could not be read, also by the parts of a step (`parts.collect_each`), whether declared or not.

    A judge does without an optional part that is too expensive: on a large table that part is refused in every run.
    """
    own = (f for name, f in frames.items() if name.rpartition(".")[2] == NOT_READ)
    failed = ((part, e) for f in own for part, e in failures({NOT_READ: f}).items())
    return [Unseen(e.source, e.reason) for part, e in failed if not (part in optional and e.code == "cost_gate")]


def _declared(failed: Mapping[str, SourceError]) -> dict[str, SourceError]:
    """Return the failures of sources that the target declares."""
    return {part: e for part, e in failed.items() if e.reason is not Reason.NOT_CONFIGURED}


def notes_of_failures(failed: Mapping[str, SourceError]) -> tuple[Text, ...]:
    """Return a note for each reason why parts could not be read."""
    parts: dict[tuple[str, str], list[str]] = {}
    for part, e in failed.items():
        parts.setdefault((e.source, e.detail), []).append(part)
    return tuple(
        say("unknown.part", part=", ".join(names), source=source, detail=detail)
        for (source, detail), names in parts.items()
    )


def source_error_text(e: SourceError) -> Text:
    """Return the sentence that says why a source did not answer."""
    return say(f"unknown.{e.reason}", source=e.source, detail=e.detail)


def unknown_from_error(e: SourceError, book: Catalog) -> Finding:
    """Return the UNKNOWN finding of a source's failure.

    It points to the section about reachability, if there is one, if the source is unreachable or refuses.
    """
    away = e.reason in (Reason.UNREACHABLE, Reason.DENIED) or e.code in ("no_connection", "unanswered")
    pointed = [book.section_with("reach")] if away and e.code != "cost_gate" else []
    return unknown("", e.reason, source_error_text(e), next_sections=tuple(filter(None, pointed)))


def with_deciding_value(f: Finding) -> Text:
    """Return the headline.

    If it does not contain the value that decided the status, append that value and its limit.
    """
    deciding = f.deciding
    if f.status is Status.UNKNOWN or not deciding:
        return f.headline
    named = [n for n in messages.shown(f.headline) if isinstance(n, int | float)]
    numbers = [v.value for v in deciding if isinstance(v.value, int | float)]
    if any(math.isclose(number, n, rel_tol=0.01) for number in numbers for n in named):
        return f.headline
    v = deciding[0]
    limit = v.threshold and (v.threshold.critical if f.status is Status.CRITICAL else v.threshold.warning)
    key = "ui.decided_below" if v.threshold and v.threshold.below else "ui.decided_above"
    return say(key, headline=f.headline, name=v.name, value=v.value, unit=v.unit, limit=limit)


def checks() -> dict[str, Check]:
    """Return every check of the active runbook by its step's id. Raises UsageError if two answer one step."""
    return pack.merge_unique(
        "step", ((c.step, c) for brought in pack.active_runbook().every("checks") for c in brought)
    )
