"""Collect the course of an incident from its logs and its last runs: the lanes of the page's timeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pandas as pd

from runbook_lib.book import catalog, messages
from runbook_lib.book.parameters import moment
from runbook_lib.diagnosis.snapshots import DRIFT_COLUMNS
from runbook_lib.dossier import report
from runbook_lib.model.finding import Reason, Status, action_title, hop_text, say
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION_LOG, Archive
from runbook_lib.store.run import read_run
from runbook_lib.view import render
from runbook_lib.view.timeline import Interval, Lane, Mark, Series

Entry = Mapping[str, Any]

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


def read_findings(archive: Archive, entries: Iterable[Entry]) -> list[tuple[Entry, dict[str, Any]]]:
    """Return the findings of runs as JSON with the run's line; without runs that are not as they were sealed."""
    found = []
    for entry in entries:
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # whatever a broken file raises
            run = read_run(archive, entry, catalog.load())
            found += [(entry, f) for f in run.stored if f["reason"] != Reason.NOT_RUN]
    return found


def lanes(
    entries: Sequence[Entry],
    verdicts: Sequence[Entry],
    actions: Iterable[Entry],
    notes: Sequence[Entry],
    findings: Iterable[dict[str, Any]],
) -> list[Lane]:
    """Return the lanes, in the order in which they are shown; those of the hops for each target.

    `entries` are the lines of the manifest, `verdicts` those of the commands' verdicts.
    """

    alerts = [Mark(moment(n["time"]), n["text"]) for n in notes if n["who"] == "alert"]
    of_targets: dict[str, list[Entry]] = {}
    for v in verdicts:
        of_targets.setdefault(report.target_of(v, entries), []).append(v)
    given = {p["detected_at"] for e in entries if (p := e.get("parameters")) and p.get("detected_at")}
    alerts += [Mark(moment(at), _text("timeline.detected")) for at in sorted(given)]
    found = [*findings]
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
                    _time_of(v),
                    f"{', '.join(v['sections'])} {v['verdict']['status']}: {render.location(v['verdict'])}",
                    v["verdict"]["status"],
                )
                for v in verdicts
            ),
        ),
        Lane(
            _text("dossier.actions"),
            tuple(
                Mark(
                    moment(a["time"]),
                    f"{messages.text(action_title(a['action']))}: "
                    + _text(f"action.result.{a['result']}")
                    + f". {(a['effect'] or a['why'])[messages.language()]}",
                    _action_status(a),
                )
                for a in actions
                if a["result"] != "begun"
            ),
        ),
        Lane(
            _text("dossier.notes"),
            tuple(Mark(moment(n["time"]), f"{n['who']}: {n['text']}") for n in notes if n["who"] != "alert"),
        ),
        Lane(
            _text("timeline.course"),
            tuple(m for own in of_targets.values() for m in _mark_course(sorted(own, key=_time_of))),
        ),
    ]


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


def incident(found: Sequence[Lane], entries: Sequence[Entry], verdicts: Sequence[Entry]) -> Interval | None:
    """Return the interval on which the timeline opens: from before the onset to the recovery, else to the last event.

    Without an onset it begins before the first event. None if the lanes show little else, or no verdict has a finding.
    """
    whole = span(found)
    present = [v for v in verdicts if not report.looks_back(v, entries)] or verdicts
    bad = [v for v in present if v["verdict"]["status"] != Status.OK.name]
    if whole is None or not bad:
        return None
    events = sorted(m.at for lane in found if lane.known is None for m in lane.marks)
    if onsets := [moment(v["onset"]) for v in bad if v.get("onset")]:
        first = min(onsets)
    else:
        first = min(_time_of(v) for v in bad)
        for at in reversed(events):
            first = at if first - MAX_GAP <= at < first else first
        first -= MIN_SPAN
    of_targets: dict[str, list[Entry]] = {}
    for v in present:
        of_targets.setdefault(report.target_of(v, entries), []).append(v)
    recovered = [_recovery(own) for own in of_targets.values() if any(v in bad for v in own)]
    if None in recovered:
        last = max(_time_of(v) for v in present)
        for at in sorted([*events, *(end for lane in found for s in lane.series for _, end, _ in s.values)]):
            last = at if last < at <= last + max(MAX_GAP, last - first) else last
    else:
        last = max(t for t in recovered if t is not None)
    first = min(first, last)  # clocks may differ
    first = max(first - max(MIN_LEAD, (last - first) * LEAD), whole[0])
    last = min(last + (last - first) * 0.04, whole[1])
    return (first, last) if last - first <= (whole[1] - whole[0]) * MOST else None


def _recovery(verdicts: Iterable[Entry]) -> pd.Timestamp | None:
    """Return when a verdict about all was OK and none after it had a finding; None if there is none."""
    well: pd.Timestamp | None = None
    for v in sorted(filter(tells_of_all, verdicts), key=_time_of):
        well = None if v["verdict"]["status"] != Status.OK.name else well or _time_of(v)
    return well


def _time_of(verdict: Entry) -> pd.Timestamp:
    """Return the moment of which a verdict speaks."""
    return moment(verdict.get("as_of") or verdict["started"])


def _hop_lanes(verdicts: Iterable[Entry]) -> Iterator[Lane]:
    """Yield what waited at each hop, and then what came and left; later verdicts replace earlier ones."""
    values: dict[str, dict[str, dict[pd.Timestamp, tuple[pd.Timestamp, float | None]]]] = {}
    limits: dict[str, float | None] = {}
    for hop in (h for v in verdicts for h in v["verdict"]["hops"] if h.get("past")):
        past = hop["past"]
        since, step = moment(past["since"]), pd.Timedelta(seconds=past["step_s"])
        limits[hop["name"]] = past["limit"]
        for kind in ("waiting", "came", "gone"):
            held = values.setdefault(hop["name"], {}).setdefault(kind, {})
            held |= {since + n * step: (since + (n + 1) * step, v) for n, v in enumerate(past[kind])}
    for kinds, key in ((("waiting",), "timeline.waiting"), (("came", "gone"), "timeline.rates")):
        for name, known in values.items():
            shown = tuple(
                Series(
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


def _build_changes_lane(findings: Iterable[dict[str, Any]]) -> Lane:
    """Return the changes that steps list (frame `lately`), and those since the last healthy configuration (`drift`)."""
    marks, known = dict[tuple[pd.Timestamp, str], Mark](), list[Interval]()
    for f in findings:
        frames = {n: record.frame_from_json(x) for n, x in f["frames"].items() if n in ("lately", "drift", "healthy")}
        if not {"at", "what", "source"} <= set(frames.get("lately", pd.DataFrame()).columns) or not f.get("at"):
            continue
        at = moment(f["at"])
        known.append((moment(frames["lately"].attrs.get("since") or f["at"]), at))
        for row in frames["lately"].to_dict("records"):
            if row["source"] != ACTION_LOG:  # it has a lane of its own
                marks[row["at"], row["what"]] = Mark(row["at"], row["what"])
        healthy = frames.get("healthy")
        for row in frames.get("drift", pd.DataFrame()).to_dict("records"):
            item, setting, before, now = (row[c] for c in DRIFT_COLUMNS)
            text = f"{item} {setting}: {before or '–'} → {now or '–'}"
            begin = healthy["at"].iloc[0] if healthy is not None and len(healthy) else at
            marks[begin, text] = Mark(begin, text, "WARNING", until=at)
    return Lane(_text("timeline.changes"), tuple(marks.values()), known=tuple(known))


def _build_locks_lane(findings: Iterable[dict[str, Any]]) -> Lane:
    """Return waits for a lock (frames with `wait_s`) and open transactions (`transaction_s`) when a step looked."""
    marks, known = dict[tuple[Any, ...], Mark](), list[Interval]()
    for f in findings:
        stored = [x for x in f["frames"].values() if {c["name"] for c in x["columns"]} & {"wait_s", "transaction_s"}]
        if not stored or not f.get("at"):
            continue
        at = moment(f["at"])
        known.append((at - pd.Timedelta(seconds=15), at))  # wide enough to be seen
        for row in (r for x in stored for r in record.frame_from_json(x).to_dict("records")):
            waits, who = "wait_s" in row, f"{row.get('application') or ''} {row.get('pid') or ''}".strip()
            seconds = row["wait_s" if waits else "transaction_s"]
            if seconds is not None and seconds == seconds and seconds >= 1:
                text = _text(
                    "timeline.waits" if waits else "timeline.open", who=who, s=seconds, by=row.get("blocked_by")
                )
                begin = at - pd.Timedelta(seconds=float(seconds))
                marks[who, waits, begin.floor("5s")] = Mark(begin, text, "WARNING" if waits else "", until=at)
                known.append((begin, at))
    waits_last = sorted(marks.values(), key=lambda m: m.status)  # drawn over the transactions
    return Lane(_text("timeline.locks"), tuple(waits_last), known=tuple(known))


def _action_status(a: Entry) -> str:
    if a["result"] in ("dry", "approved"):
        return ""
    return {True: "OK", None: "UNKNOWN"}.get(a.get("verified"), "CRITICAL") if a["result"] == "done" else "CRITICAL"


def tells_of_all(verdict: Entry) -> bool:
    """Return whether a verdict is about the whole flow; one that found something always counts."""
    looked = {catalog.FIRST_RESPONSE, catalog.RECOVERY} & {*verdict["sections"]}
    return bool(looked) or verdict["verdict"]["status"] != Status.OK.name


def _mark_course(verdicts: Sequence[Entry]) -> Iterator[Mark]:
    """Yield the onset, the end of the outage, and the first verdict without a finding after it."""
    if onset := next((v["onset"] for v in verdicts if v.get("onset")), None):
        yield Mark(moment(onset), _text("timeline.onset"), "CRITICAL")
    bad = False
    for v in filter(tells_of_all, verdicts):
        status = v["verdict"]["status"]
        if over := v["verdict"].get("ended"):
            yield Mark(moment(over["since"]), _text("timeline.over"), "WARNING")
        if bad and status == Status.OK.name:
            confirmed = catalog.RECOVERY in v["sections"]
            yield Mark(_time_of(v), _text("timeline.confirmed" if confirmed else "timeline.well"), "OK")
        bad = status != Status.OK.name
