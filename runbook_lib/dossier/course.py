"""Collect the course of an incident from its logs and its last runs: the lanes of the page's timeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from runbook_lib.book import catalog, messages
from runbook_lib.diagnosis.snapshots import DRIFT_COLUMNS
from runbook_lib.model.finding import Finding, Reason, Status, action_title, hop_text, say
from runbook_lib.model.times import moment
from runbook_lib.store.archive import LOG, Archive
from runbook_lib.store.lines import ActionLine, Logs, RunLine, VerdictLine
from runbook_lib.store.run import read_run
from runbook_lib.view import render
from runbook_lib.view.timeline import Interval, Lane, LaneSeries, Mark

#: How many of the newest runs are read for changes and locks.
MAX_READ = 8
#: The shortest time that the timeline shows.
MIN_SPAN = pd.Timedelta(minutes=10)
#: An incident is shown from this much before its onset, or from this part of its length if that is more.
MIN_LEAD, LEAD = pd.Timedelta(minutes=1), 0.125
#: What follows later than this, and than the incident has lasted, is not part of it, such as a note of the next day.
MAX_GAP = pd.Timedelta(hours=1)
#: If the incident is more of the whole span than this, all of it is shown.
MOST = 0.75


def read_findings(archive: Archive, runs: Iterable[RunLine]) -> tuple[list[tuple[RunLine, Finding]], dict[str, str]]:
    """Return the findings of runs with the run's line, and why the evidence of a run was not read, by its name.

    What is not as it was sealed is not read.
    """

    def read(line: RunLine) -> tuple[RunLine, tuple[Finding, ...], str]:
        try:
            return line, read_run(archive, line).findings, ""
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:  # whatever a broken file raises
            return line, (), getattr(e, "strerror", None) or f"{type(e).__name__}: {e}"

    each = [*archive.read_each(read, runs)]
    found = [(line, f) for line, findings, _ in each for f in findings if f.reason is not Reason.NOT_RUN]
    return found, {line.name: why for line, _, why in each if why}


def lanes(logs: Logs, findings: Iterable[Finding]) -> list[Lane]:
    """Return the lanes, in the order in which they are shown; those of the hops for each target."""
    alerts = [Mark(n.time, n.text) for n in logs.notes if n.who == "alert"]
    given = {at for run in logs.runs if (at := run.parameters.get("detected_at"))}
    alerts += [Mark(moment(at), _text("timeline.detected")) for at in sorted(given)]
    of_targets, found = _by_target(logs, logs.verdicts), [*findings]
    return [
        Lane(_text("timeline.alerts"), tuple(alerts)),
        *(
            replace(lane, name=f"{target} {lane.name}") if len(of_targets) > 1 else lane
            for target, own in of_targets.items()
            for lane in _hop_lanes(own)
        ),
        _build_locks_lane(found),
        _build_changes_lane(found),
        Lane(
            _text("timeline.runs"),
            tuple(
                Mark(
                    v.looked_at,
                    f"{', '.join(v.sections)} {v.status.name}: {render.location(v.verdict)}",
                    v.status.name,
                )
                for v in logs.verdicts
            ),
        ),
        Lane(
            _text("dossier.actions"),
            tuple(
                Mark(
                    a.time,
                    f"{messages.text(action_title(a.action))}: "
                    + _text(f"action.result.{a.result}")
                    + f". {messages.text(a.effect or a.why)}",
                    _action_status(a),
                )
                for a in logs.actions
                if a.result != "begun"
            ),
        ),
        Lane(
            _text("dossier.notes"),
            tuple(Mark(n.time, f"{n.who}: {n.text}") for n in logs.notes if n.who != "alert"),
        ),
        Lane(
            _text("timeline.course"),
            tuple(m for own in of_targets.values() for m in _mark_course(sorted(own, key=lambda v: v.looked_at))),
        ),
    ]


def _by_target(logs: Logs, verdicts: Iterable[VerdictLine]) -> dict[str, list[VerdictLine]]:
    found: dict[str, list[VerdictLine]] = {}
    for v in verdicts:
        found.setdefault(logs.target_of(v), []).append(v)
    return found


def span(found: Sequence[Lane]) -> Interval | None:
    """Return the interval that the lanes show: their series and their events; None if there are none.

    Changes and locks may be of long before, and do not extend it.
    """
    times = [t for lane in found for s in lane.series for b, e, _ in s.values for t in (b, e)]
    times += [m.at for lane in found if lane.known is None for m in lane.marks]
    if not times:
        return None
    first, last = min(*times, max(times) - MIN_SPAN), max(times)
    margin = (last - first) * 0.02
    return first - margin, last + margin


def incident(found: Sequence[Lane], logs: Logs) -> Interval | None:
    """Return the interval on which the timeline opens: from before the onset to the recovery, else to the last event.

    Without an onset it begins before the first event. None if the lanes show little else, or no verdict has a finding.
    """
    whole = span(found)
    bad = [v for v in logs.verdicts if v.status is not Status.OK]
    if whole is None or not bad:
        return None
    events = sorted(m.at for lane in found if lane.known is None for m in lane.marks)
    if onsets := [v.onset for v in bad if v.onset is not None]:
        first = min(onsets)
    else:
        first = min(v.looked_at for v in bad)
        for at in reversed(events):
            first = at if first - MAX_GAP <= at < first else first
        first -= MIN_SPAN
    recovered = [_recovery(own) for own in _by_target(logs, logs.verdicts).values() if any(v in bad for v in own)]
    if None in recovered:
        last = max(v.looked_at for v in logs.verdicts)
        for at in sorted([*events, *(end for lane in found for s in lane.series for _, end, _ in s.values)]):
            last = at if last < at <= last + max(MAX_GAP, last - first) else last
    else:
        last = max(t for t in recovered if t is not None)
    first = min(first, last)  # clocks may differ
    first = max(first - max(MIN_LEAD, (last - first) * LEAD), whole[0])
    last = min(last + (last - first) * 0.04, whole[1])
    return (first, last) if last - first <= (whole[1] - whole[0]) * MOST else None


def _recovery(verdicts: Iterable[VerdictLine]) -> pd.Timestamp | None:
    """Return when a verdict about all was OK and none after it had a finding; None if there is none."""
    well: pd.Timestamp | None = None
    for v in sorted(filter(tells_of_all, verdicts), key=lambda v: v.looked_at):
        well = None if v.status is not Status.OK else well or v.looked_at
    return well


def _hop_lanes(verdicts: Iterable[VerdictLine]) -> Iterator[Lane]:
    """Yield what waited at each hop, and then what came and left; later verdicts replace earlier ones."""
    values: dict[str, dict[str, dict[pd.Timestamp, tuple[pd.Timestamp, float | None]]]] = {}
    limits: dict[str, float | None] = {}
    for hop, past in ((h.name, h.past) for v in verdicts for h in v.verdict.hops if h.past):
        step, limits[hop] = pd.Timedelta(seconds=past.step_s), past.limit
        for kind in ("waiting", "came", "gone"):
            held = values.setdefault(hop, {}).setdefault(kind, {})
            series = enumerate(getattr(past, kind))
            held |= {past.since + n * step: (past.since + (n + 1) * step, v) for n, v in series}
    for kinds, key in ((("waiting",), "timeline.waiting"), (("came", "gone"), "timeline.rates")):
        for name, known in values.items():
            shown = tuple(
                LaneSeries(
                    _text(f"ui.{kind}"),
                    kind,
                    tuple((b, e, v) for b, (e, v) in sorted(known[kind].items()) if v is not None),
                )
                for kind in kinds
                if known[kind]
            )
            if shown:
                words = _text(key, hop=hop_text(name))
                yield Lane(words, series=shown, limit=limits[name] if kinds == ("waiting",) else None)


def _text(key: str, **params: Any) -> str:
    return messages.text(say(key, **params))


def _build_changes_lane(findings: Iterable[Finding]) -> Lane:
    """Return the changes that steps list (frame `lately`), and those since the last healthy configuration (`drift`)."""
    marks, known = dict[tuple[pd.Timestamp, str], Mark](), list[Interval]()
    for f in findings:
        lately = f.frames.get("lately", pd.DataFrame())
        if not {"at", "what", "source"} <= {*lately.columns} or f.at is None:
            continue
        since = lately.attrs.get("since")
        known.append((moment(since) if since else f.at, f.at))
        for row in lately.to_dict("records"):
            if row["source"] != LOG:  # it has a lane of its own
                marks[row["at"], row["what"]] = Mark(row["at"], row["what"])
        healthy = f.frames.get("healthy")
        for row in f.frames.get("drift", pd.DataFrame()).to_dict("records"):
            item, setting, before, now = (row[c] for c in DRIFT_COLUMNS)
            text = f"{item} {setting}: {before or '–'} → {now or '–'}"
            begin = healthy["at"].iloc[0] if healthy is not None and len(healthy) else f.at
            marks[begin, text] = Mark(begin, text, "WARNING", until=f.at)
    return Lane(_text("timeline.changes"), tuple(marks.values()), known=tuple(known))


def _build_locks_lane(findings: Iterable[Finding]) -> Lane:
    """Return waits for a lock (frames with `wait_s`) and open transactions (`transaction_s`) when a step looked."""
    marks, known = dict[tuple[Any, ...], Mark](), list[Interval]()
    for f in findings:
        read = [x for x in f.frames.values() if {"wait_s", "transaction_s"} & {*x.columns}]
        if not read or f.at is None:
            continue
        known.append((f.at - pd.Timedelta(seconds=15), f.at))  # wide enough to be seen
        for row in (r for frame in read for r in frame.to_dict("records")):
            waits, who = "wait_s" in row, f"{row.get('application') or ''} {row.get('pid') or ''}".strip()
            seconds = row["wait_s" if waits else "transaction_s"]
            if seconds is not None and seconds == seconds and seconds >= 1:
                text = _text(
                    "timeline.waits" if waits else "timeline.open", who=who, s=seconds, by=row.get("blocked_by")
                )
                begin = f.at - pd.Timedelta(seconds=float(seconds))
                marks[who, waits, begin.floor("5s")] = Mark(begin, text, "WARNING" if waits else "", until=f.at)
                known.append((begin, f.at))
    waits_last = sorted(marks.values(), key=lambda m: m.status)  # drawn over the transactions
    return Lane(_text("timeline.locks"), tuple(waits_last), known=tuple(known))


def _action_status(a: ActionLine) -> str:
    if a.result in ("dry", "approved"):
        return ""
    return {True: "OK", None: "UNKNOWN"}.get(a.verified, "CRITICAL") if a.result == "done" else "CRITICAL"


def tells_of_all(verdict: VerdictLine) -> bool:
    """Return whether a verdict is about the whole flow; one that found something always counts."""
    looked = {catalog.section_with("triage"), catalog.section_with("recover")} & {*verdict.sections}
    return bool(looked) or verdict.status is not Status.OK


def _mark_course(verdicts: Sequence[VerdictLine]) -> Iterator[Mark]:
    """Yield the onset, the end of the outage, and the first verdict without a finding after it."""
    if (onset := next((v.onset for v in verdicts if v.onset is not None), None)) is not None:
        yield Mark(onset, _text("timeline.onset"), "CRITICAL")
    bad = False
    for v in filter(tells_of_all, verdicts):
        if over := v.verdict.ended:
            yield Mark(over.since, _text("timeline.over"), "WARNING")
        if bad and v.status is Status.OK:
            confirmed = catalog.section_with("recover") in v.sections
            yield Mark(v.looked_at, _text("timeline.confirmed" if confirmed else "timeline.well"), "OK")
        bad = v.status is not Status.OK
