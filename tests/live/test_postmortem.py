"""Section 7 and the draft: arithmetic, what a person wrote, the four mandatory items, real tables, the command."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

from runbook_lib.book import catalog, messages
from runbook_lib.dossier import mandatory, postmortem, rejudge
from runbook_lib.gameday.sandbox import history
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    Finding,
    Frames,
    RankedMode,
    Reason,
    Signal,
    Status,
    Verdict,
    judged,
    replace,
    say,
)
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import course, impact, origin, past
from runbook_lib.packs.postmortem import incident, measures, timeline
from runbook_lib.packs.postmortem.origin import VerdictRow
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION, NOTE, Archive
from runbook_lib.store.lines import read_logs
from runbook_lib.store.run import Run, read_run, run_to_json
from tests.kit.command import runbook
from tests.kit.frames.postmortem import MINUTE, outage, run_row, span, waiting
from tests.kit.schemas import valid
from tests.kit.servers import Servers
from tests.kit.steps import NOW, ago, events, expect, make_given, run, traffic, words

STEPS = ("7.1", "7.2", "7.3", "7.4")


# A dossier ---------------------------------------------------------------------------------------------------


def a_run(
    section: str,
    status: str,
    at: pd.Timestamp,
    *findings: Finding,
    modes: tuple[RankedMode, ...] = (),
    **parameters: Any,
) -> dict[str, Any]:
    """One run as the manifest and its notebook would tell it."""
    verdict = Verdict(Status[status], "delivery_worker" if modes else None, "high", modes)
    asked = {"incident_id": "INC", "target": "default", **parameters}
    own = {"section": section, "status": status, "parameters": asked}
    return own | {"at": at, "findings": findings, "verdict": verdict}


def keep(archive: Archive, *runs: dict[str, Any]) -> None:
    archive.prepare()
    for r in runs:
        name = f"{r['at']:%Y%m%dT%H%M%SZ}-{r['section']}-{r['status']}"
        header, stored = {"as_of": r["at"].isoformat()}, [record.finding(f) for f in r["findings"]]
        evidence = json.dumps(run_to_json(Run(r["section"], header, stored, r["verdict"]))).encode()
        entry = {c: r[c] for c in ("section", "status", "parameters")} | {
            "name": name, "started": r["at"].isoformat(), "ended": (r["at"] + MINUTE / 6).isoformat(),
            "stuck_at": r["verdict"].stuck_at, "confidence": "high", "problem": "",
        }  # fmt: skip
        archive.append(entry, {f"evidence/{name}.json": evidence})
        said = {"verdict": record.verdict(r["verdict"]), "started": entry["started"], "sections": [r["section"]]}
        archive.append({"name": f"{name}.json"} | said, {f"{name}.json": b"{}"})


WORKER = RankedMode("FM-NOTI-06", 0.95)
_SIGNALS = (Signal("FM-NOTI-06", 0.8), Signal("FM-DB-01", -0.3))
SPOKEN = replace(judged(say("ui.no_action"), at_least=Status.CRITICAL, signals=_SIGNALS), step="4.1.1")


def an_incident(archive: Archive, now: pd.Timestamp, *, recovered: bool = True) -> None:
    """Detected 8 minutes ago, green 2 minutes ago, with a note, a dry action and a run that died."""

    def before(minutes: float) -> pd.Timestamp:
        return now - minutes * MINUTE

    alert = {"detected_by": "alert", "detected_at": before(8).isoformat()}
    first = a_run("3", "CRITICAL", before(7), SPOKEN, modes=(WORKER,), **alert)
    green = [a_run("6", "OK", before(2))] if recovered else []
    keep(archive, first, a_run("6", "WARNING", before(4)), *green)
    archive.add_line(NOTE, {"time": before(5).isoformat(), "who": "ops", "text": HOSTILE, "section": "3"})
    action = {
        "time": before(6).isoformat(), "id": "a", "result": "dry", "action": "restart", "who": "ops",
        "what": {"workload": "notification"}, "why": {"en": "shown only", "ja": "表示のみ"},
        "approved_by": "", "reason": "", "effect": None, "verified": None,
    }  # fmt: skip
    archive.add_line(ACTION, action)
    archive.write(f"{before(3):%Y%m%dT%H%M%SZ}-4.3.partial.ipynb", b"{}")


HOSTILE = (
    "<script>alert(1)</script> | x <!-- /person --> ![p](http://e/x) [l](javascript:a)\n## 4. TTD: 5 s\n| TTR | 1 s |"
)


# Arithmetic --------------------------------------------------------------------------------------------------


def runs_of(*rows: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=incident.RUN)
    for column in ("started", "looked_at", "detected_at", "onset"):
        frame[column] = pd.to_datetime(frame[column], utc=True)
    return frame


DRAFT = {"incident": "INC", "target": "here", "artifact": "x", "made": "2025-01-31T03:00:00Z"}


def drafted(lang: str = "en", found: Iterable[Finding] | None = None) -> str:
    """A draft that nobody has written in yet."""
    with messages.using(lang):
        return postmortem.draft(_FOUND if found is None else found, **DRAFT)


def detected(*runs: dict[str, Any], **given: Any) -> incident.Moment:
    return incident.detection({"runs": runs_of(*runs)}, make_given(**given))


def by_slo(found: Finding) -> dict[str, dict[Any, Any]]:
    return {str(r["slo"]): r for r in found.frames["impact"].to_dict("records")}


def test_the_impact_of_an_outage() -> None:
    found = impact.judge_impact(outage(), make_given())
    rows, since = by_slo(found), span()["since"][0]
    assert rows["ENT-C"]["total"] == rows["NOTI-B"]["total"]
    values = {
        "onset": (since + 20 * MINUTE).isoformat(),
        "onset_how": "notifications",
        "recovered": (since + 24 * MINUTE + pd.Timedelta(seconds=10)).isoformat(),
    }
    says = f"NOTI-B 4 min (1,200/{rows['NOTI-B']['total']:,.0f}); NOTI-C 5 min"
    expect(found, Status.OK, values=values, says=says)


def missed(seconds_ago: float) -> Frames:
    return {"missed": pd.DataFrame([{"slo": "ENT-D", "looked_at": ago(seconds_ago), "name": "3-CRITICAL"}])}


def failed(first: pd.Timestamp | None) -> Frames:
    return {"outbox_failed": row(total=7, timed=first is not None, n=3, first_failed=first)}


def earlier(slo: str, **measured: Any) -> Frames:
    """What an earlier run of section 7 measured."""
    return {
        "earlier": pd.DataFrame([dict.fromkeys(impact.IMPACT) | {"slo": slo, "why": "", "name": "x-7-OK"} | measured])
    }


def reach(published_since: pd.Timestamp) -> Frames:
    return {"reach": row(ended_since=ago(40 * 86400), published_since=published_since)}


def brief() -> Frames:
    """A backlog that came and went within a minute."""
    frames = outage(lasted=0)
    flow = frames["waiting.notifications"]
    return frames | {"waiting.notifications": flow.assign(most=flow["most"].where(flow["bucket"] != 20, 96.0))}


GONE = reach(ago(-60))


@pytest.mark.parametrize(
    ("frames", "days", "slo", "expected"),
    [
        # 1,200 of the 50,000 that may be late in 28 days.
        ({}, 0, "NOTI-B", {"minutes": 4, "bad": 1200, "budget": 2.4, "counted": "counted"}),
        ({}, 0, "NOTI-C", {"minutes": 5, "peak": 1200}),  # in the fifth it is sent
        ({}, 0, "ENT-C", {"minutes": 0, "counted": "projected"}),
        (brief(), 0, "NOTI-C", {"minutes": 1, "peak": 96}),
        # What a run of section 3 found missed, although the tables do not show it; after the recovery: another story.
        (missed(300), 0, "ENT-D", {"minutes": None, "why": "seen", "name": "3-CRITICAL"}),
        (missed(-300), 0, "ENT-D", {"minutes": 0, "why": ""}),
        # Rows that were given up have no time without commit times.
        (failed(None), 0, "ENT-E", {"minutes": None, "why": "no_time", "bad": 3}),
        (failed(None) | earlier("ENT-E", minutes=0.0, bad=0.0), 0, "ENT-E", {"bad": 3}),
        (failed(ago(300)), 0, "ENT-E", {"minutes": 5}),
        # What retention has deleted is said, and is never 0.
        (GONE, 7, "ENT-C", {"minutes": None, "bad": None, "why": "retention"}),
        (GONE, 7, "ENT-D", {"why": "retention"}),
        (GONE, 7, "NOTI-B", {"minutes": 4, "why": "partly"}),  # lost events are known by their rows in the outbox
        (GONE | earlier("ENT-C", minutes=3.0), 7, "ENT-C", {"minutes": 3, "why": "earlier", "name": "x-7-OK"}),
        (GONE | earlier("ENT-C", minutes=3.0, onset=ago(9 * 3600)), 7, "ENT-C", {"why": "retention"}),
        (reach(ago(300)), 7, "ENT-C", {"why": "partly"}),  # of what is left, the numbers are a lower bound
    ],
)
def test_the_impact_on_an_objective(frames: Frames, days: int, slo: str, expected: dict[str, Any]) -> None:
    found = impact.judge_impact(outage() | frames, replace(make_given(), as_of=NOW + pd.Timedelta(days=days)))
    told = by_slo(found)[slo]
    assert {name: None if pd.isna(told[name]) else told[name] for name in expected} == expected
    unmeasured = expected.get("why") in ("seen", "no_time", "retention", "partly")
    assert not unmeasured or (found.status is Status.WARNING and slo in words(found))
    assert ("postmortem.queue_gone" in {n.key for n in found.notes}) is (days > 0)


def test_the_age_of_the_unpublished() -> None:
    """One minute in which all 300 are old at its end, and are published in the next."""
    frames = outage()
    came, old = [0.0] + [300.0] * 10, [0.0] * 11
    frames["outbox"] = frames["outbox"].assign(
        published=[*came, 0.0, 600.0] + [300.0] * 18,
        old_in=[*old, 250.0, 50.0] + [0.0] * 18,
        old_out=[*old, 0.0, 300.0] + [0.0] * 18,
    )
    level = impact.objective_levels(frames, make_given())["ENT-D"]
    assert list(level.index[level["breach"]]) == [10] and level["level"].max() == 250
    expect(impact.judge_impact(brief(), make_given()), values={"onset": None})  # its least does not show it


def test_what_an_objective_allows() -> None:
    slos = catalog.load().slos
    assert impact.allowed_share(slos["NOTI-A"]) == pytest.approx(0.001)
    assert impact.allowed_share(slos["NOTI-B"]) == 0.05
    assert impact.allowed_share(slos["NOTI-C"]) is None and impact.allowed_share(slos["NOTI-D"]) is None


# Times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "up", "bucket"),
    [
        ([0] * 10 + [30] * 5, True, 10),
        ([0] * 10 + [30] * 5 + [0] * 30, True, 10),  # it is over: the fall is no beginning
        ([300] * 20 + [0, 0], False, 20),
        ([300] * 20 + [0] * 3 + [900] * 2, False, 20),
        ([5, 6, 4, 5, 5, 6, 4], True, None),
        ([], True, None),
    ],
)
def test_the_strongest_change(counts: list[float], up: bool, bucket: int | None) -> None:
    assert course.find_strongest_change(counts, up=up) == bucket


def test_a_rise_begins_with_what_leads_up_to_it() -> None:
    assert course.find_rise(np.array([0.0] * 10 + [2, 1, 30, 30, 30])) == 10
    assert course.find_rise(np.array([3.0, 2, 4, 3, 3, 2, 3, 3, 40, 40])) == 8
    assert course.find_rise(np.array([0.0] * 10)) is None


def test_the_onset_falls_back_on_what_section_3_saw() -> None:
    row = run_row("3", "CRITICAL", ago(60), onset=ago(90))
    found = course.course({"runs": runs_of(row)}, make_given(), incident.Moment(ago(60))).began
    assert (found.at, found.how, found.name) == (ago(90), "run", "3-CRITICAL")


def quiet(*spells: tuple[str, int, int, float]) -> Frames:
    """A span of 60 minutes without runs, in which queues stood from one minute to another with so many rows."""
    frames = outage(lasted=0, until=60)
    del frames["runs"]
    for queue, first, end, n in spells:
        flat = [0.0] * 62
        came = flat.copy()
        gone = flat.copy()
        came[first + 1], gone[end + 1] = n, n
        frames[f"waiting.{queue}"] = waiting(came, gone, low={}, since=span(60)["since"][0]).assign(
            slow=came, tried=flat
        )
    return frames


def minute_of(text: Any) -> int:
    at: float = (pd.Timestamp(str(text)) - span(60)["since"][0]) / MINUTE
    return round(at)


TWO = (("notifications", 20, 30, 200), ("outbox", 40, 43, 90))


@pytest.mark.parametrize(
    ("spells", "detected", "how", "onset", "recovered", "note"),
    [
        (TWO, None, "notifications", 20, 31, "other_incident"),  # nobody looked at it: the larger one
        (TWO, 42, "outbox", 40, 44, "other_incident"),  # what was noticed is the one that is meant
        (TWO, -9, "notifications", 20, 31, "other_incident"),  # what was noticed before the window is none of them
        ((("outbox", 20, 30, 200), ("broker", 31, 33, 90)), None, "outbox", 20, 34, "steps"),  # side by side: one
        # What stands at an end of the span has bounds only; what fills it is not seen.
        ((("notifications", 50, 60, 200),), None, "notifications", 50, None, "steps"),
        ((("notifications", -1, 9, 200),), None, "before", 0, 10, "steps"),
        ((("notifications", 0, 60, 200),), None, None, None, None, "always"),
    ],
)
def test_the_incident_of_a_span(
    spells: tuple[tuple[str, int, int, float], ...], detected: int | None, how: str | None, onset: int | None,
    recovered: int | None, note: str,
) -> None:  # fmt: skip
    at = None if detected is None else span(60)["since"][0] + detected * MINUTE
    found = impact.judge_impact(quiet(*spells), make_given(detected_at=at))
    expect(found, values={"onset_how": how}, notes={f"postmortem.{note}"})
    times = [found.value(name) for name in ("onset", "recovered")]
    assert [None if t is None else minute_of(t) for t in times] == [onset, recovered]


@pytest.mark.parametrize(
    ("begun", "tried", "observation"),
    [
        ({"outbox": 300}, 2, "past.publishing_stood"),
        ({"outbox": 300}, 3, "past.publishing_failed"),
        ({"broker": 300}, 0, "past.processing_stood"),
        ({"notifications": 300}, 2, "past.sending_stood"),
        ({"notifications": 300}, 3, "past.sending_failed"),
        ({"broker": 300, "notifications": 290}, 60, "past.processing_stood"),
        ({"outbox": 300, "broker": 300}, 0, "past.publishing_stood"),
        ({"outbox": 300, "notifications": 285}, 0, "past.both_stood"),
    ],
)
def test_without_a_verdict_the_tables_tell_a_place_at_best(
    begun: dict[str, float], tried: int, observation: str
) -> None:
    spells = [past.Episode(queue, ago(at), ago(200), slow=90.0, tried=float(tried)) for queue, at in begun.items()]
    frames = {
        "spells": rows.frame([*spells, past.Episode("notifications", ago(284), ago(200), slow=500.0)], past.Episode)
    }
    seen = origin.observe_first_episode(frames, make_given())
    assert seen and seen[0] == observation
    found = origin.judge_origin(frames, make_given())
    assert found.status is Status.WARNING and found.value("origin") is None and found.value("undecided")
    assert len(found.frames["candidates"]) > 1 and "Undecided" in words(found) and "判定不能" in words(found, "ja")


@pytest.mark.parametrize(
    ("onset", "recovered", "runs", "key", "values", "notes"),
    [
        (900, 700, [("3", "CRITICAL", 850)], "times", (50, 150, 200), []),
        (900, 700, [("3", "CRITICAL", 700)], "times", (200, 0, 200), []),
        # The end is the tables', and what a run saw is a mark.
        (900, 700, [("3", "CRITICAL", 850), ("6", "OK", 600)], "times", (50, 150, 200), []),
        # Nobody looked while it lasted.
        (900, 700, [("3", "CRITICAL", 699)], "times_unseen", (None, None, 200), []),
        (900, 700, [("3", "OK", 100)], "times_unseen", (None, None, 200), []),
        (900, 700, [], "times_unseen", (None, None, 200), []),
        (900, None, [("3", "CRITICAL", 850)], "times_open", (50, None, None), ["not_recovered"]),
        (None, None, [("3", "CRITICAL", 850)], "times_open", (None,) * 3, ["no_onset", "not_recovered"]),
        (None, None, [("3", "CRITICAL", 850), ("6", "OK", 600)], "times_in_part", (None, 250, None), ["no_onset"]),
        (None, None, [], "no_runs", (None,) * 3, []),
        (900, 700, [("3", "CRITICAL", 1900)], "times_unseen", (None, None, 200), []),  # it was of before the window
    ],
)
def test_the_times_that_are_known(
    onset: float | None, recovered: float | None, runs: list[tuple[str, str, float]], key: str,
    values: tuple[float | None, ...], notes: list[str],
) -> None:  # fmt: skip
    at = {"onset": onset, "recovered": recovered, "since": 1800}
    began = row(**{name: None if t is None else ago(t).isoformat() for name, t in at.items()})
    seen = runs_of(*(run_row(s, status, ago(t)) for s, status, t in runs))
    for died in ([], ["20250131T030000Z-4.3.partial.ipynb"]):
        frames = {"runs": seen, "began": began, "partials": pd.DataFrame({"name": died}, dtype=object)}
        found = timeline.judge_timeline(frames, make_given())
        status = {"times": Status.OK, "no_runs": Status.UNKNOWN}.get(key, Status.WARNING)
        expect(found, status, f"postmortem.{key}", values=dict(zip(("ttd", "ttr", "lasted"), values, strict=True)))
        expected = [] if key == "no_runs" else ["formula", *(["died"] if died else []), *notes]
        assert [note.key for note in found.notes] == [f"postmortem.{note}" for note in expected]
        if ("6", "OK", 600) in runs and recovered:
            how = found.frames["times"].set_index("what")["how"]
            assert (how["recovery"], how["confirmed"]) == ("returned", "green")


def test_detection() -> None:
    told = run_row("3", "CRITICAL", ago(60), detected_by="alert", detected_at=ago(100))
    first = run_row("4.1", "CRITICAL", ago(80))
    by = run_row("3", "CRITICAL", ago(70), detected_by="user_report")
    assert detected(first, told) == incident.Moment(ago(100), "alert", "3-CRITICAL")
    assert detected(first) == incident.Moment(ago(80), "first_run", "4.1-CRITICAL")
    assert detected(first, by) == incident.Moment(ago(70), "user_report", "3-CRITICAL")
    here = {"detected_at": ago(300), "detected_by": "slo"}
    assert detected(first, told, **here) == incident.Moment(ago(300), "slo")
    assert detected() == incident.Moment()


@pytest.mark.parametrize(
    ("runs", "at"),
    [
        ([("3", "CRITICAL", 90), ("6", "OK", 50)], 50),
        ([("3", "CRITICAL", 90), ("6", "OK", 50), ("6", "OK", 40)], 50),
        ([("6", "OK", 95), ("3", "CRITICAL", 90)], None),
        ([("3", "CRITICAL", 90), ("6", "OK", 50), ("6", "WARNING", 40), ("6", "OK", 30)], 30),
        ([("3", "CRITICAL", 90), ("6", "OK", 50), ("4.1", "CRITICAL", 40)], None),
        ([("3", "CRITICAL", 90), ("6", "OK", 50), ("2", "WARNING", 40)], 50),
        ([("3", "CRITICAL", 90), ("6", "UNKNOWN", 50)], None),
        ([], None),
    ],
)
def test_recovery(runs: list[tuple[str, str, float]], at: float | None) -> None:
    found = incident.confirmation(
        {"runs": runs_of(*(run_row(s, status, ago(t)) for s, status, t in runs))}, make_given(), None
    )
    assert found.at == (None if at is None else ago(at))


def test_lengths_of_time() -> None:
    early, late = incident.Moment(ago(90)), incident.Moment(ago(30))
    assert timeline.duration_s(early, late) == 60
    assert timeline.duration_s(late, early) == 0  # a clock's error is not a detection before the onset
    assert timeline.duration_s(incident.Moment(), late) is None


# Origin ------------------------------------------------------------------------------------------------------


def origin_of(*verdicts: tuple[str, str, list[tuple[str, float]]]) -> Finding:
    rows = [(f"v{i}", ago(100 - i), status, None, sure) for i, (status, sure, _) in enumerate(verdicts)]
    modes = [(f"v{i}", id_, score) for i, (_, _, named) in enumerate(verdicts) for id_, score in named]
    return origin.judge_origin(
        {
            "verdicts": pd.DataFrame(rows, columns=[f.name for f in fields(VerdictRow)]),
            "modes": pd.DataFrame(modes, columns=["name", "id", "score"]),
        },
        make_given(),
    )


HUNG, HUNG_TOO = [("FM-NOTI-06", 0.9)], [("FM-NOTI-06", 0.9), ("FM-NOTI-05", 0.4)]


@pytest.mark.parametrize(
    ("verdicts", "origin", "sure"),
    [
        # The worst, the surest, the first; a decided one before a worse one that is undecided.
        ([("CRITICAL", "high", HUNG_TOO), ("CRITICAL", "high", [("FM-NOTI-04", 0.9)])], "FM-NOTI-06", "high"),
        ([("CRITICAL", "low", [("FM-DB-01", 0.9)]), ("CRITICAL", "high", HUNG)], "FM-NOTI-06", "high"),
        ([("CRITICAL", "low", [("FM-DB-01", 0.0)]), ("WARNING", "high", HUNG), ("WARNING", "high", [])],
         "FM-NOTI-06", "high"),
        # A score at the limit.
        ([("WARNING", "medium", [("FM-NOTI-06", 0.5)])], "FM-NOTI-06", "medium"),
        ([("WARNING", "high", [("FM-NOTI-03", 0.7), ("FM-NOTI-06", 0.8)])], "FM-NOTI-06", "high"),
        # Inconclusive.
        ([("CRITICAL", "low", HUNG)], None, "low"),
        ([("CRITICAL", "high", [*HUNG, ("FM-NOTI-03", 0.81)])], None, "high"),
        ([("CRITICAL", "high", [("FM-NOTI-06", 0.49)])], None, "high"),
        ([("CRITICAL", "high", [])], None, "high"),
        ([("OK", "high", [])], None, "none"),
    ],
)  # fmt: skip
def test_the_origin(verdicts: list[tuple[str, str, list[tuple[str, float]]]], origin: str | None, sure: str) -> None:
    found, says = origin_of(*verdicts), f"{origin} Delivery worker stopped" if origin else "Inconclusive"
    expect(found, Status.OK if origin else Status.WARNING, values={"origin": origin, "confidence": sure}, says=says)


def test_the_roles_of_the_failure_modes() -> None:
    other = ("CRITICAL", "high", [("FM-NOTI-04", 0.9)])
    found = origin_of(
        ("CRITICAL", "low", [("FM-DB-01", 0.9)]), ("CRITICAL", "high", HUNG_TOO), other, ("OK", "high", [])
    )
    roles = found.frames["candidates"].set_index("id")["role"].to_dict()
    assert roles.pop("FM-NOTI-06") == "origin" and roles.pop("FM-NOTI-05") == "candidate"
    assert roles == dict.fromkeys(("FM-DB-01", "FM-NOTI-04"), "named_elsewhere")


# The draft ---------------------------------------------------------------------------------------------------


def findings(mode: str | None = "FM-NOTI-06", ttr: float | None = 400.0) -> list[Finding]:
    over = [] if ttr is None else [run_row("6", "OK", ago(460 - ttr))]
    seen = runs_of(run_row("3", "CRITICAL", ago(460), detected_by="alert"), *over)
    began = row(onset=ago(500).isoformat(), onset_how="notifications")
    suggested = pd.DataFrame(
        [("FM-NOTI-06", "measure", "silence | while rows are due")], columns=["id", "kind", "text"]
    )
    found = {
        "7.1": impact.judge_impact(outage(), make_given()),
        "7.2": origin_of(("CRITICAL", "high", [(mode, 0.9)] if mode else [])),
        "7.3": timeline.judge_timeline({"runs": seen, "began": began}, make_given()),
        "7.4": measures.judge_measures({"suggested": suggested}, make_given()),
    }
    return [replace(f, step=step, frames={"suggested": suggested} | f.frames) for step, f in found.items()]


def make(archive: Archive, lang: str = "en", found: list[Finding] | None = None) -> postmortem.WrittenDraft:
    made = {"target": "here", "artifact": "20250131T031000Z-7-WARNING", "made": "2025-01-31T03:10:00Z"}
    with messages.using(lang):
        return postmortem.write(archive, found or findings(), **made)


def text_of(archive: Archive) -> str:
    return archive.read(mandatory.MARKDOWN).decode()


def with_item(draft: str, item: str, text: str) -> str:
    """As an editor would: one item of the front matter is replaced; without a text, removed."""
    before, front, body = draft.split("---\n", 2)
    front, n = re.subn(
        rf"^{item}:.*\n(?:(?:[ -]).*\n)*", lambda m: f"{item}: {text}\n" if text else "", front, flags=re.MULTILINE
    )
    assert n == 1
    return f"{before}---\n{front}---\n{body}"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    archive = Archive(str(tmp_path / "out"), "INC")
    archive.prepare()
    monkeypatch.setenv("RUNBOOK_OUTPUT", archive.output)
    return archive


_FOUND = findings()


def test_a_draft_is_written_once(archive: Archive) -> None:
    first = make(archive)
    archive.write(mandatory.MARKDOWN, b"# ours \xff\n")
    names = [Path(make(archive, lang).markdown).name for lang in ("en", "ja")]
    assert (Path(first.markdown).name, *names) == (mandatory.MARKDOWN, "postmortem-2.md", "postmortem-3.md")
    assert archive.read(mandatory.MARKDOWN) == b"# ours \xff\n"
    assert {"postmortem.html", "postmortem-2.html", "postmortem-3.html"} < {*archive.names()}


def test_the_page_opens_offline_and_runs_nothing(archive: Archive) -> None:
    note = {"time": ago(60), "kind": "note", "who": HOSTILE, "detail_en": HOSTILE, "detail_ja": HOSTILE}
    found = findings()
    entries = pd.DataFrame([dict.fromkeys(timeline.ENTRY, "") | note], columns=timeline.ENTRY)
    found[2] = replace(found[2], frames=found[2].frames | {"timeline": entries})
    make(archive, found=found)
    _, front, body = text_of(archive).split("---\n", 2)
    assert not re.search(r"(?<!\\)<", body)
    page = postmortem.page(f"---\n{front}# {HOSTILE}\n---\n{body}{HOSTILE}", "INC")
    for loader in ("<script", "<link", "<iframe", "@import", 'src="http', "url(http", 'href="javascript:'):
        assert loader not in page
    assert "<img" not in page
    assert page.count("alert(1)") > 2 and "origin: FM-NOTI-06" in page  # shown as text


def numbers(draft: str) -> list[int]:
    return [m.number for m in mandatory.missing(draft, catalog.load())]


# On real tables ----------------------------------------------------------------------------------------------


@pytest.fixture
def now(db: psycopg.Connection) -> pd.Timestamp:
    return moment(db)


def moment(db: psycopg.Connection) -> pd.Timestamp:
    found = db.execute("SELECT now()").fetchone()
    assert found
    return pd.Timestamp(found[0]).tz_convert("UTC")


def seed(db: psycopg.Connection) -> pd.Timestamp:
    """Forty minutes of traffic; what came from 10 to 8 minutes ago was sent 3 minutes late, some given up or lost.

    All ages are those of one moment, however long it takes, which is returned.
    """
    with db.transaction():
        traffic(db, seconds=2400, until=600, per_second=2)
        for second in range(480, 600):
            events(db, 2, second, sent_after=180.0)
        traffic(db, seconds=478, until=0, per_second=2)
        events(db, 5, 590, status="FAILED", tries=10, dead=300)
        events(db, 4, 580, processed=False, status=None)
        return moment(db)


def test_an_incident_on_real_tables(servers: Servers, db: psycopg.Connection, archive: Archive) -> None:
    now = seed(db)
    an_incident(archive, now)
    found = run(servers, *STEPS, incident_id="INC")
    rows = by_slo(found["7.1"])
    # Those sent late, given up, and never a notification. A minute of the clock with a few of them only is no part.
    assert 240 - 6 <= rows["NOTI-B"]["bad"] - 5 - 4 <= 240
    assert 2 <= rows["NOTI-B"]["minutes"] <= 4
    assert (rows["NOTI-A"]["bad"], rows["NOTI-D"]["bad"]) == (5, 5)
    assert rows["ENT-C"]["bad"] == 0 and rows["ENT-C"]["total"] > 900
    assert rows["NOTI-C"]["peak"] >= 200
    onset = pd.Timestamp(str(found["7.1"].value("onset")))
    assert abs((onset - (now - 10 * MINUTE)).total_seconds()) < 20
    assert found["7.2"].value("origin") == "FM-NOTI-06" and found["7.2"].status is Status.OK
    evidence = found["7.2"].frames["evidence"]
    assert list(evidence["step"]) == ["4.1.1"] and evidence["name"][0].endswith("-3-CRITICAL")
    assert found["7.3"].value("ttd") == pytest.approx(120, abs=20)
    # The backlog was as usual again 5 minutes ago; that a run of section 6 saw it is a mark on the timeline.
    assert found["7.3"].value("ttr") == pytest.approx(180, abs=25)
    kinds = list(found["7.3"].frames["timeline"]["kind"])
    assert kinds[:2] == ["onset", "detection"] and {"recovery", "confirmed"} <= set(kinds)
    assert {"dry", "note", "died", "run", "verdict"} <= set(kinds)
    assert found["7.3"].frames["timeline"]["time"].is_monotonic_increasing
    assert found["7.4"].status is Status.WARNING and len(found["7.4"].frames["suggested"]) == 2


@pytest.mark.parametrize(
    ("asked", "bounds", "least", "most"),
    [
        ({}, (68, 2), 235, 249),  # of the dossier: an hour before the detection, to the confirmed recovery
        ({"from_time": 8.5}, (8.5, 2), 50, 200),
        ({"to_time": 9}, (69, 9), 100, 140),
        ({"from_time": 7, "to_time": 1}, (7, 1), 0, 0),
        ({"from_time": 1}, (1, 0), 0, 0),  # after the recovery: to the present
    ],
)
def test_the_window_of_the_postmortem(
    servers: Servers, db: psycopg.Connection, archive: Archive, asked: dict[str, float], bounds: tuple[float, float],
    least: float, most: float,
) -> None:  # fmt: skip
    now = seed(db)
    an_incident(archive, now)
    times: dict[str, Any] = {name: (now - minutes * MINUTE).isoformat() for name, minutes in asked.items()}
    found = run(servers, "7.1", incident_id="INC", **times)["7.1"]
    span = incident.span_of(found.frames)
    assert span is not None
    assert span.since == (now - bounds[0] * MINUTE).floor("min")
    assert abs((span.until - (now - bounds[1] * MINUTE)).total_seconds()) < 15
    assert least <= by_slo(found)["NOTI-B"]["bad"] <= most
    users = found.frames["users"].set_index("bucket")["users"]
    assert found.value("users") == users[users.index.isna()].iloc[0] and bool(most) == bool(found.value("users"))
    assert (impact.chart_users(found.frames, make_given()) is not None) == bool(most)


def test_without_a_database_it_says_what_is_missing(servers: Servers, now: pd.Timestamp, archive: Archive) -> None:
    an_incident(archive, now, recovered=False)
    found = run(servers, *STEPS, incident_id="INC", database_url="postgresql://x:secret@127.0.0.1:1/none")
    assert (found["7.1"].status, found["7.1"].reason) == (Status.UNKNOWN, Reason.UNREACHABLE)
    assert found["7.2"].value("origin") == "FM-NOTI-06"
    assert found["7.3"].value("ttr") is None and found["7.3"].status is Status.WARNING
    text = drafted(found=found.values())
    assert "not measured: the database could not be reached" in text and "not recovered yet" in text
    assert numbers(text) == [1, 3, 4]


def test_an_idle_system_without_an_incident(servers: Servers, db: psycopg.Connection, archive: Archive) -> None:
    found = run(servers, *STEPS, incident_id="INC")
    assert found["7.1"].status is Status.OK
    assert [found[s].reason for s in ("7.2", "7.3")] == [Reason.NO_DATA, Reason.NO_DATA]


def test_a_long_incident_is_asked_in_pieces(
    servers: Servers, db: psycopg.Connection, now: pd.Timestamp, archive: Archive
) -> None:
    events(db, 50, 20 * 3600)
    events(db, 50, 600)
    keep(archive, a_run("3", "CRITICAL", now - pd.Timedelta(hours=19)))
    found = run(servers, "7.1", incident_id="INC", window_minutes=120)["7.1"]
    rows = by_slo(found)
    assert rows["NOTI-B"]["total"] == rows["ENT-C"]["total"] == 100
    assert found.frames["span"]["bucket_s"][0] == 180
    assert sum(q.name == "postmortem/notifications" for q in found.queries) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slo", "written"),
    [
        ("NOTI-C", ("notification.notifications", "sent_at")),
        ("ENT-D", ("entitlement.outbox_events", "published_at")),
    ],
)
def test_what_was_over_within_a_minute_on_real_tables(
    servers: Servers, db: psycopg.Connection, now: pd.Timestamp, archive: Archive, slo: str, written: tuple[str, str]
) -> None:
    """Twenty seconds in which a worker did nothing: no minute's end shows them, and no delivery is late."""
    history.backfill(db, now.to_pydatetime(), hours=0.7, rate=10)
    begin = (now - 10 * MINUTE).floor("min") + pd.Timedelta(seconds=15)
    end, (table, column) = begin + pd.Timedelta(seconds=20), written
    db.execute(
        f"UPDATE {table} SET {column} = %(end)s WHERE {column} >= %(begin)s AND {column} < %(end)s",
        {"begin": begin, "end": end},
    )
    keep(archive, a_run("3", "CRITICAL", end + MINUTE), a_run("6", "OK", end + 2 * MINUTE))
    found = run(servers, "7.1", incident_id="INC")["7.1"]
    rows = by_slo(found)
    assert rows["NOTI-B"]["minutes"] == 0
    assert (rows[slo]["minutes"], rows[slo]["peak"] >= 90) == (1, True), rows[slo]
    assert slo in words(found)
    # The first that came late may have been tried before, and is then some seconds older.
    assert abs((pd.Timestamp(str(found.value("onset"))) - begin).total_seconds()) <= 5


# By the command ----------------------------------------------------------------------------------------------


def command(servers: Servers, archive: Archive, *arguments: str, **env: str) -> CompletedProcess[str]:
    done = runbook("postmortem", *arguments, "--output", archive.output, env={**os.environ, **servers.env, **env})
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_the_command(servers: Servers, db: psycopg.Connection, archive: Archive) -> None:
    now = seed(db)
    an_incident(archive, now)
    done = command(servers, archive, "INC", "--json")
    said = valid(json.loads(done.stdout), "run")
    assert done.returncode == said["exit_code"] == 1, done.stderr
    assert archive.problems() == []
    ran = read_run(archive, read_logs(archive).runs[-1])
    judged, _ = rejudge.judge(ran.findings, ran.header, catalog.load())
    assert ran.concluded and [f.status for f in judged] == [f.status for f in ran.findings]
    text = text_of(archive)
    assert "\norigin: FM-NOTI-06\n" in text and "\n## 4. TTD" not in text
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", text)
    pages = {f"{e['name']}.html" for e in archive.artifacts()}  # the seeded runs have a notebook only
    assert links and all(link in pages or archive.read(link) for link in links)
    # A person fills it in; a draft in the other language stands beside it.
    checked = command(servers, archive, "INC", "--check")
    assert checked.returncode == 2 and checked.stderr.startswith("4 measures"), checked.stderr
    lacks = valid(json.loads(command(servers, archive, "INC", "--check", "--json").stdout), "mandatory")
    assert [m["number"] for m in lacks["missing"]] == [4]
    text = with_item(text, "measures", "\n- {kind: control, measure: a probe, owner: A. Sato, due: 2026-01-31}")
    archive.write(mandatory.MARKDOWN, text.encode())
    passed = command(servers, archive, "INC", "--check", "--json", "--lang", "ja")
    complete = {"incident": "INC", "complete": True, "missing": []}
    assert passed.returncode == 0 and valid(json.loads(passed.stdout), "mandatory") == complete
    assert "measure: a probe" in archive.read(postmortem.PAGE).decode()
    again = command(servers, archive, "INC", "--lang", "ja")
    assert again.returncode == 0 and "postmortem-2.md" in again.stdout, again.stdout + again.stderr
    assert text_of(archive) == text
    assert 'href="postmortem.html"' in archive.read("index.html").decode()
    # A look back is not how things stand.
    assert not any(e.get("sections") == ["7"] for e in archive.artifacts())


@pytest.mark.slow
def test_a_draft_of_what_nobody_looked_at(servers: Servers, db: psycopg.Connection, archive: Archive) -> None:
    """The section alone, and only a window: the incident is found, its times are the rows' own, its cause is open."""
    with db.transaction():
        traffic(db, seconds=2400, until=600, per_second=2)
        for second in range(480, 600):
            events(db, 2, second, sent_after=180.0, tries=2)
        traffic(db, seconds=478, until=0, per_second=2)
        now = moment(db)
    asked = ("run", "7", "--incident", "INC", "-p", "window_minutes=30", "--output", archive.output)
    done = runbook(*asked, env={**os.environ, **servers.env})
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert f"{archive.place}/{mandatory.MARKDOWN}" in done.stdout
    entries = mandatory.parse_record(text_of(archive))["timeline"]["entries"]
    times = {r["what"]: pd.Timestamp(r["time"]) for r in entries}
    assert abs((times["Onset"] - (now - 10 * MINUTE)).total_seconds()) < 20
    assert abs((times["Recovery"] - (now - 5 * MINUTE)).total_seconds()) < 20
    assert "FM-NOTI-03" in text_of(archive) and "\norigin: ''\n" in text_of(archive)
    assert numbers(text_of(archive)) == [2, 3, 4]
    assert archive.problems() == []


def test_the_command_on_what_is_not_there(servers: Servers, archive: Archive, now: pd.Timestamp) -> None:
    assert command(servers, archive, "NONE").returncode == 64
    archive.write("20250131T031000Z-3.partial.ipynb", b"{}")
    checked = command(servers, archive, "INC", "--check")
    assert checked.returncode == 2 and len(checked.stderr.splitlines()) == 5
    done = command(servers, archive, "INC", RUNBOOK_DATABASE_URL="postgresql://x:hidden-word@127.0.0.1:1/none")
    assert done.returncode == 3, done.stdout + done.stderr
    text = text_of(archive)
    assert "no run of this incident" in text
    assert "hidden-word" not in text + done.stdout + done.stderr
