"""Comparisons of two runs, and the healthy configuration: `rb.compare`, `runbook diff`, `baseline`, `watch`."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book.parameters import validate
from runbook_lib.diagnosis import snapshots
from runbook_lib.diagnosis.snapshots import RunSnapshot, difference
from runbook_lib.dossier import baseline, compare
from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.model.finding import (
    Finding,
    Hop,
    RankedMode,
    Reason,
    Status,
    Threshold,
    Value,
    Verdict,
    judged,
    replace,
    say,
    unknown,
)
from runbook_lib.model.usage import UsageError
from runbook_lib.store.archive import MANIFEST, Archive
from runbook_lib.store.files import digest
from runbook_lib.store.lines import run_line
from runbook_lib.store.run import read_run, run_to_json
from runbook_lib.view.differences import Comparison
from tests.kit import ROOT
from tests.kit.command import runbook, start
from tests.kit.schemas import valid
from tests.kit.steps import UNPROCESSED, events, traffic

LIMIT = Threshold("queue.oldest", "s", 10, 60)


def finding(step: str = "4.1.1", **values: Any) -> Finding:
    seen = [Value(n, v, "s", LIMIT) if n == "oldest" else Value(n, v, "rows") for n, v in values.items()]
    return replace(judged(say("compare.same"), seen), step=step)


def look(*findings: Finding, **verdict: Any) -> RunSnapshot:
    status = max((f.status for f in findings), key=lambda s: s.rank)
    return snapshots.take_snapshot(
        "a look", findings, Verdict(status, verdict.pop("stuck_at", None), "high", **verdict)
    )


def said(before: RunSnapshot, after: RunSnapshot) -> list[tuple[str, str, str]]:
    return [(c.kind, c.where, c.name) for c in difference(before, after)]


def test_what_appears_what_goes_and_what_moves() -> None:
    strip = {w: (Hop("relay", waiting=w, rate_out=100),) for w in (0, 300)}
    before = look(finding(due=3, oldest=2.0), failure_modes=(RankedMode("FM-OB-02", 0.7),), hops=strip[0])
    after = look(
        finding(due=300, oldest=61.0),
        unknown("4.1.2", Reason.TIMEOUT, say("compare.same")),
        failure_modes=(RankedMode("FM-OB-01", 0.9), RankedMode("FM-OB-03", 0.0)),
        stuck_at="relay",
        hops=strip[300],
    )
    assert set(said(before, after)) == {
        ("verdict", "", ""),
        ("mode", "FM-OB-01", ""),
        ("mode", "FM-OB-02", ""),
        ("step", "4.1.1", ""),
        ("value", "4.1.1", "due"),
        ("value", "4.1.1", "oldest"),
        ("hop", "relay", "waiting"),
    }


@pytest.mark.parametrize(
    ("before", "after", "unit", "moved"),
    [
        (100, 130, "rows", False),
        (100, 190, "rows", True),
        (0, 16, "rows", False),
        (0, 17, "rows", True),
        (-6, -1, "rows", True),
        (0.5, 0.6, "ratio", True),
        (0.5, 0.5, "ratio", False),
    ],
)
def test_what_chance_explains_has_not_moved(before: float, after: float, unit: str, moved: bool) -> None:
    all_named: tuple[dict[str, Any], ...] = ({"n": before, "gone": 9, "x": 1}, {"n": after, "new": 9, "x": "text"})
    looks = [
        look(replace(finding(), values=tuple(Value(name, value, unit) for name, value in named.items())))
        for named in all_named
    ]
    assert said(*looks) == ([("value", "4.1.1", "n")] if moved else [])


def test_only_numbers_of_steps_that_ran_are_in_a_snapshot() -> None:
    odd = [Value("yes", True), Value("text", "x"), Value("none", None), Value("nan", math.nan), Value("n", 7, "rows")]
    seen = look(
        replace(finding(), values=tuple(odd)),
        unknown("4.1.2", Reason.NOT_RUN, say("compare.same")),
        unknown("4.1.3", Reason.TIMEOUT, say("compare.same")),
        hops=(Hop("relay", waiting=0.0),),
    )
    assert {*seen.numbers} == {("4.1.1", "n"), ("relay", "waiting")}
    assert {*seen.steps} == {"4.1.1", "4.1.3"}


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        ({"stuck_at": "relay", "failure_modes": (RankedMode("FM-OB-01", 0.9),)}, "OK, relay, FM-OB-01, high"),
        ({"undecided": ("relay", "jetstream")}, "OK, relay / jetstream, high"),
        ({"failure_modes": (RankedMode("FM-OB-01", 0.0), RankedMode("FM-OB-02", 0.1))}, "OK, FM-OB-02, high"),
    ],
)
def test_a_conclusion_in_one_line(verdict: dict[str, Any], line: str) -> None:
    seen = look(finding(), **verdict)
    assert seen.verdict and snapshots.conclusion(seen.verdict) == line
    # Of two moments the status and the hop are compared, of the same evidence all of it.
    other = look(finding())
    assert ("verdict" in {c.kind for c in difference(other, seen)}) is ("stuck_at" in verdict)
    assert "verdict" in {c.kind for c in difference(other, seen, same_evidence=True)}


STREAM = ("jetstream", "stream s", "max_age", "90 s")


@pytest.mark.parametrize(
    ("before", "now", "differing"),
    [
        ([STREAM], [STREAM], []),
        ([STREAM], [(*STREAM[:3], "5 s")], [["stream s", "max_age", "90 s", "5 s"]]),
        ([STREAM], [], []),  # not answered
        ([STREAM, ("postgres", "table t", "a", "1")], [STREAM], []),
        ([STREAM], [("jetstream", "stream t", "max_age", "5 s")],
         [["stream s", "max_age", "90 s", ""], ["stream t", "max_age", "", "5 s"]]),
        ([STREAM], [("jetstream", "stream s", snapshots.LOCKED, "")], []),
    ],
)  # fmt: skip
def test_settings_that_differ(
    before: list[tuple[str, ...]], now: list[tuple[str, ...]], differing: list[list[str]]
) -> None:
    was, is_ = (pd.DataFrame(rows, columns=snapshots.SETTING_COLUMNS) for rows in (before, now))
    assert snapshots.drift(was, is_).to_numpy().tolist() == differing
    read = [look(replace(finding(), frames={snapshots.CONFIGURATION: frame})) for frame in (was, is_)]
    found = [c for c in difference(*read) if c.kind == "setting"]
    assert [[c.where, c.name, c.before or "", c.after or ""] for c in found] == differing
    assert not {None, ""} & {c.after if c.before is None else c.before for c in found}
    assert difference(look(finding()), read[1]) == difference(read[0], look(finding())) == ()


def test_a_number_beyond_its_limit_has_moved_however_near() -> None:
    assert ("value", "4.1.1", "oldest") in said(look(finding(oldest=9.9)), look(finding(oldest=10.1)))


def test_that_one_looks_back_further_is_said_first() -> None:
    before, after = (replace(look(finding(due=n)), window_minutes=w) for n, w in ((400, 15), (100, 60)))
    changes = difference(before, after)
    assert (changes[0].name, changes[0].before, changes[0].after) == ("window_minutes", 15, 60)
    for other in (before, replace(before, window_minutes=None)):
        assert "window_minutes" not in {c.name for c in difference(other, replace(after, window_minutes=15))}


def test_what_was_not_seen_before_has_not_changed() -> None:
    silent = unknown("4.1.1", Reason.NO_DATA, say("compare.same"))
    before, after = look(silent), look(finding(due=900))
    assert [c.kind for c in difference(before, after)] == ["verdict"]
    assert [c.kind for c in difference(before, after, same_evidence=True)] == ["verdict", "step"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6)), max_size=6))
def test_a_look_does_not_differ_from_itself(values: list[tuple[str, float]]) -> None:
    seen = look(finding(**dict[str, Any](values)))
    assert difference(seen, seen) == difference(seen, seen, same_evidence=True) == ()


# On real servers --------------------------------------------------------------------------------------------


@pytest.fixture
def target(servers: Servers, db: psycopg.Connection, broker: str, default_target: None) -> dict[str, str]:
    """A system on which a little flows, by its environment."""
    traffic(db)
    return {**os.environ, **servers.env}


@pytest.mark.slow
def test_now_against_then(
    target: dict[str, str], db: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path))
    healthy = compare.run_section("4.1")
    for name in ("x", "20261126"):
        with pytest.raises(UsageError, match=f"no run '{name}'"):
            healthy.compare(name)
    events(db, 400, 100, outbox="PENDING", **UNPROCESSED)
    found = Comparison(compare.live(healthy), compare.live(now := compare.run_section("4.1")))
    assert "outbox.due" in {c.name for c in found.changes if c.where == "4.1.3"}
    assert any("400 rows" in line for line in found.lines())
    valid([json.loads(json.dumps(found.record()))], "diff")
    assert "400 rows" in found._repr_mimebundle_()["text/html"]
    # What waited then is not kept; what was published is.
    assert {c.name for c in now.compare("90s ago").changes if c.where == "4.1.3"} >= {"outbox.published"}


@pytest.mark.slow
def test_only_a_healthy_configuration_is_stored(target: dict[str, str], db: psycopg.Connection, tmp_path: Path) -> None:
    events(db, 400, 100, outbox="PENDING", **UNPROCESSED)
    done = runbook("baseline", "--output", str(tmp_path), env=target)
    assert (done.returncode, done.stderr) == (Status.CRITICAL.value, "")
    assert "is CRITICAL: its configuration is not stored" in done.stdout
    assert baseline.configuration(str(tmp_path), "default") is None


def test_the_configuration_that_0_5_0_stored_is_read(tmp_path: Path) -> None:
    rows = pd.DataFrame([STREAM], columns=snapshots.SETTING_COLUMNS)
    baseline.keep(str(tmp_path), "east", rows, pd.Timestamp("2026-01-31T03:00Z"))
    kept = tmp_path / "baseline-east" / baseline.HEALTHY_RUNS
    (line,) = (json.loads(line) for line in kept.read_text().splitlines())
    numbers = {"at": "2026-01-31T04:00:00+00:00", "section": "4.1", "numbers": [["4.1.1", "n", 7]]}
    kept.write_text("".join(json.dumps(e) + "\n" for e in (numbers | line | {"section": "3"}, numbers)))
    found = baseline.configuration(str(tmp_path), "east")
    assert found is not None and found.drop(columns="at").equals(rows) and {*found["at"]} == {pd.Timestamp(line["at"])}


@pytest.mark.slow
def test_watch_shows_look_after_look_until_it_is_interrupted(target: dict[str, str], db: psycopg.Connection) -> None:
    events(db, 400, 100, outbox="PENDING", **UNPROCESSED)
    time.sleep(6)  # what the fixture has published is as new as this test, and whoever published within 5 s is at work
    process = start("watch", "--every", "2", env=target)
    assert process.stdout is not None
    shown = ""
    while "compared with" not in shown:  # the second sample says what it is compared with
        line = process.stdout.readline()
        assert line, process.communicate()
        shown += line
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (Status.CRITICAL.value, "")
    assert shown.count("Stuck at outbox relay") == 2


# Dossiers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The sample dossier, twice."""
    for name in ("sample", "other"):
        shutil.copytree(ROOT / "outputs" / "sample", tmp_path / name)
    return tmp_path


def test_two_runs_of_dossiers(output: Path) -> None:
    name = next(e["name"] for e in Archive(str(output), "sample").manifest() if e["section"] == "4.1")
    where = ("--output", str(output), "--page", str(output / "page.html"))
    same = runbook("diff", "sample", name[:20], f"other/{name}", *where, env=os.environ)
    assert same.returncode == 0 and "No difference beyond chance" in same.stdout
    assert "No difference" in (output / "page.html").read_text()
    first, *_, last = (e["name"] for e in Archive(str(output), "sample").manifest() if e.get("section"))
    done = runbook("diff", "sample", first, last, "--json", *where[:2], env=os.environ)
    (document,) = valid(json.loads(done.stdout), "diff")
    assert document["changes"] == [] and first in document["title"]


def test_a_run_that_did_not_conclude_is_compared_as_far_as_it_came(output: Path) -> None:
    archive = Archive(str(output), "sample")
    entry = next(e for e in archive.manifest() if e["section"] == "4.1")
    ran = replace(read_run(archive, run_line(archive, entry)), concluded=False)
    evidence = json.dumps(run_to_json(ran)).encode()
    archive.write("evidence/died.json", evidence)
    died = entry | {"name": "died", "sha256": {"evidence/died.json": digest(evidence)}}
    archive.write(MANIFEST, b"".join(json.dumps(e).encode() + b"\n" for e in [entry, died]))
    done = runbook("diff", "sample", "--output", str(output), env=os.environ)
    assert done.returncode == 0 and "No difference beyond chance" in done.stdout


def ran(name: str, hour: str, section: str = "4.1", problem: str = "", **parameters: Any) -> dict[str, Any]:
    given = {"target": "east", "as_of": None, "window_minutes": 60} | parameters
    started = f"2026-01-31T{hour}:00Z"
    return {
        "name": name,
        "section": section,
        "status": "OK",
        "started": started,
        "problem": problem,
        "parameters": given,
    }


EARLIER = [
    ran("first", "03:00"),
    ran("other target", "03:50", target="west"),
    ran("failed", "03:52", problem="the kernel died"),
    ran("other window", "03:51", window_minutes=15),
    ran("other section", "03:50", section="4.2"),
    ran("near", "03:48"),
    ran("of the past", "03:50", as_of="2026-01-31T02:00:00Z"),
    ran("of that moment", "03:58", as_of="2026-01-31T03:49:00Z"),
]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A dossier of runs of which only the manifest can be read."""
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    for entry in EARLIER:
        archive.add_line(MANIFEST, entry)
    monkeypatch.setattr(compare, "_read_run", lambda archive, line: line.name)
    return archive


@pytest.mark.parametrize(
    ("before", "found"), [("10m", "of that moment"), ("12m", "near"), ("1h", "first"), ("2h", "of the past")]
)
def test_the_earlier_run_is_the_one_that_looked_at_that_moment(
    earlier: Archive, before: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = validate({"target": "east", "incident_id": "INC-1"})
    section, as_of = SimpleNamespace(number="4.1"), pd.Timestamp("2026-01-31T04:00:00Z")
    context: Any = SimpleNamespace(archive=earlier, parameters=parameters, section=section, as_of=as_of, recorded=None)
    rb: Any = SimpleNamespace(context=context)
    assert str(compare._find_or_run_earlier(rb, pd.Timedelta(before))) == found


def test_the_first_and_the_last_run_are_of_one_target_and_window_by_their_moment(earlier: Archive) -> None:
    earlier.add_line(MANIFEST, ran("last west", "05:00", target="west"))
    pairs: list[Any] = [*compare.first_and_last(earlier)]
    assert pairs == [("of the past", "of that moment"), ("other target", "last west")]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["sample"], "has no section with two runs"),
        (["sample", "2026"], "name two runs"),
        (["sample", "2026", "2026"], "3 runs '2026'"),
        (["sample", "nothing", "nothing"], "no run 'nothing'"),
        (["nobody"], "no incident 'nobody'"),
    ],
)
def test_what_can_not_be_compared_is_one_line(output: Path, arguments: list[str], problem: str) -> None:
    done = runbook("diff", *arguments, "--output", str(output), env=os.environ)
    assert done.returncode == 64 and problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
