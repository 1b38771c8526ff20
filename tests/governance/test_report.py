"""The incidents of a period, from dossiers alone: what each came to."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book.messages import LANGUAGES, using
from runbook_lib.cli.main import cli
from runbook_lib.cli.report import _parse_limit
from runbook_lib.dossier import overview, report
from runbook_lib.dossier.mandatory import MARKDOWN
from runbook_lib.dossier.report import IncidentSummary
from runbook_lib.model.finding import RankedMode, Status, Verdict
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION, LOG, NOTE, RUN, VERDICT, Archive
from tests.kit import ROOT
from tests.kit.logs import logs_of
from tests.kit.schemas import valid

T0 = pd.Timestamp("2026-03-01T12:00:00Z")
NOW = pd.Timestamp("2026-03-31T15:30:00Z")
RECORD = """---
origin: FM-OB-01
timeline:
  ttd_seconds: １２０
  ttr_seconds: {not_measurable: nobody looked}
measures:
  - {kind: control, measure: a probe, owner: Mori, due: 2026-05-01}
  - {kind: design, measure: two pods, owner: Sato, due: }
  - {kind: measure, measure: an alert, owner: Abe, due: 2026-04-01, done: 2026-03-20}
  - {kind: measure, measure: a proposal that nobody took up, owner: , due: }
---
# What people wrote
"""


def at(minutes: float) -> str:
    return (T0 + pd.Timedelta(minutes=minutes)).isoformat()


def ran(section: str, status: str, minutes: float, place: str | None = None, **parameters: Any) -> dict[str, Any]:
    return {
        "name": f"{section}-{minutes}",
        "section": section,
        "status": status,
        "stuck_at": place,
        "confidence": "high",
        "parameters": {"target": "production", "detected_by": None, "detected_at": None} | parameters,
        "started": at(minutes),
    }


def concluded(*runs: dict[str, Any], **verdict: Any) -> list[dict[str, Any]]:
    """Runs, and what their command concluded."""
    worst = max(runs, key=lambda r: Status[r["status"]].rank)
    told = {"status": worst["status"], "stuck_at": worst["stuck_at"], "confidence": "high", "failure_modes": []}
    sections = [r["section"] for r in runs]
    return [*runs, {"name": "v", "verdict": told | verdict, "sections": sections, "started": runs[0]["started"]}]


WHY = {"en": "-", "ja": "-"}


def mode(id_: str, score: float = 0.9) -> dict[str, Any]:
    return {"id": id_, "score": score, "because": [], "excluded_by": ""}


def acted(id_: str, minutes: float, result: str, verified: bool | None = None, **more: Any) -> dict[str, Any]:
    what = {"action": "restart", "what": {"name": "worker"}, "result": result, "verified": verified, "why": WHY}
    return {"id": id_, "time": at(minutes), "target": "production", **what, **more}


def noted(minutes: float, who: str, text: str) -> dict[str, Any]:
    return {"time": at(minutes), "who": who, "text": text}


def keep(output: Path, incident: str, *, draft: str = "", **logs: list[dict[str, Any]]) -> None:
    archive = Archive(str(output), incident)
    archive.prepare()
    for line in logs.get("runs", ()):
        archive.add_line(VERDICT if "verdict" in line else RUN, line)
    for kind, name in ((ACTION, "actions"), (NOTE, "notes")):
        for line in logs.get(name, ()):
            archive.add_line(kind, line)
    if draft:
        archive.write(MARKDOWN, draft.encode())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Four incidents: one that was worked on, one a person began, and two alerts of one rule, the first for nothing."""
    out = tmp_path / "out"
    bad = concluded(
        ran("3", "CRITICAL", 1, "relay", detected_by="alert", detected_at=at(0)),
        ran("4.1", "WARNING", 2),
        failure_modes=[mode("FM-OB-01"), mode("FM-OB-02", 0.4)],
    )
    over = concluded(ran("6", "WARNING", 8), ran("6", "OK", 10)) + concluded(ran("6", "OK", 12))
    keep(
        out,
        "INC-1",
        runs=bad + over + concluded(ran("7", "WARNING", 60)),
        notes=[noted(0.5, "alert", "Late firing: late (+1)"), noted(5, "mori", "restarted")],
        actions=[
            acted("a", 3, "dry"),
            *(acted("b", 4, "begun"), acted("b", 4.5, "done", False)),
            *(acted("c", 5, "begun"), acted("c", 5.5, "done", True)),
            *(acted("d", 6, "begun"), acted("e", 7, "refused")),
        ],
    )
    keep(out, "INC-2", runs=[ran("4.1", "CRITICAL", 2880, "relay")], draft=RECORD)
    keep(out, "INC-3", runs=concluded(ran("3", "OK", 4320)), notes=[noted(4319, "alert", "Late firing")])
    keep(out, "INC-4", runs=concluded(ran("3", "UNKNOWN", 5760)), notes=[noted(5759, "alert", "Late firing")])
    return out


def read(output: Path, since: str | None = None, until: str | None = None) -> list[IncidentSummary]:
    begin, end = _parse_limit("--since", since, NOW), _parse_limit("--until", until, NOW)
    found, unread = report.read(str(output), begin, end)
    assert not unread
    return found


def said(output: Path, *args: str) -> Result:
    return CliRunner().invoke(cli, ["report", "--output", str(output), *args], standalone_mode=False)


# Each incident ------------------------------------------------------------------------------------------------


def test_an_incident_that_was_worked_on(output: Path) -> None:
    first = read(output)[0]
    assert (first.incident, first.target, first.begun) == ("INC-1", "production", T0 + pd.Timedelta(seconds=30))
    assert (first.begun_by, first.alert) == ("alert", "Late")
    assert (first.worst, first.last, first.place, first.modes) == ("CRITICAL", "OK", ("relay",), ("FM-OB-01",))
    assert first.sections == ("3", "4.1", "6", "7")
    assert [(a.result, a.helped) for a in first.actions] == [
        ("done", False),
        ("done", True),
        ("begun", None),
        ("refused", None),
    ]
    # From when it was detected to the first good look of the last ones; when it began nobody wrote down.
    assert (first.ttr_s, first.ttr_by, first.ttd_s, first.ttd_by) == (600.0, "detected_at", None, "")


def test_what_people_wrote_goes_before(output: Path) -> None:
    second = read(output)[1]
    assert (second.begun_by, second.modes, second.place) == ("person", ("FM-OB-01",), ("relay",))
    assert (second.ttd_s, second.ttd_by, second.ttr_s) == (120.0, "postmortem", None)
    # What is done is not open, and what the draft suggests is nobody's yet.
    assert [(m.measure, m.owner, m.due) for m in second.measures] == [
        ("a probe", "Mori", "2026-05-01"),
        ("two pods", "Sato", ""),
    ]


@pytest.mark.parametrize(("done", "is_open"), [("2026-03-20", False), ("yes", False), ("no", True), ("TODO", True)])
def test_a_measure_is_open_until_its_postmortem_says_when(output: Path, done: str, is_open: bool) -> None:
    keep(output, "INC-5", runs=[ran("3", "OK", 0)], draft=RECORD.replace("done: 2026-03-20", f"done: {done}"))
    found = next(i for i in read(output) if i.incident == "INC-5")
    assert ("an alert" in [m.measure for m in found.measures]) is is_open


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([], None),  # detected, and nobody saw it recover
        ([ran("6", "OK", 10)], 600.0),
        ([ran("6", "OK", 10), ran("6", "OK", 20)], 600.0),
        ([ran("6", "OK", 10), ran("4.1", "CRITICAL", 15)], None),
        ([ran("6", "OK", 10), ran("6", "WARNING", 15), ran("6", "OK", 20)], 1200.0),
        ([ran("6", "OK", 10), ran("4.1", "WARNING", 15)], 600.0),
        ([ran("6", "OK", -9)], None),  # before anybody noticed
        ([ran("3", "OK", 10)], None),  # is no recovery's section
    ],
)
def test_recovered_is_what_a_run_has_seen(looks: list[dict[str, Any]], seconds: float | None) -> None:
    begun = ran("3", "CRITICAL", 1, detected_at=at(0))
    assert report.summarise("x", logs_of(begun, *looks)).ttr_s == seconds
    assert report.summarise("x", logs_of(ran("3", "CRITICAL", 1), *looks)).ttr_s is None  # from when, nobody said


@pytest.mark.parametrize(
    ("detected_by", "notes", "by"),
    [
        (None, [], "person"),
        ("alert", [], "alert"),
        ("slo", [], "person"),
        (None, [noted(0, "alert", "A firing")], "alert"),
        (None, [noted(5, "alert", "A firing")], "person"),  # it came when somebody was at it
        ("user_report", [noted(0, "alert", "A firing")], "person"),
    ],
)
def test_how_it_was_begun(detected_by: str | None, notes: list[dict[str, Any]], by: str) -> None:
    found = report.summarise("x", logs_of(ran("3", "OK", 1, detected_by=detected_by), notes=notes))
    assert (found.begun_by, found.alert) == (by, "A" if notes and by == "alert" else "")


def test_an_undecided_verdict_names_all_that_it_may_be() -> None:
    unsure = {"stuck_at": None, "undecided": ["relay", "database"], "between": ["FM-OB-01", "FM-DB-01"]}
    found = report.summarise("x", logs_of(*concluded(ran("3", "CRITICAL", 1), **unsure)))
    assert (found.place, found.modes) == (("relay", "database"), ("FM-OB-01", "FM-DB-01"))


def test_an_incident_without_a_run_has_no_status() -> None:
    found = report.summarise("x", logs_of(notes=[noted(0, "alert", "A firing")]))
    assert (found.worst, found.last, found.begun_by) == ("", "", "alert")


# What it comes to ---------------------------------------------------------------------------------------------


_STATUSES = st.sampled_from([s.name for s in Status])
_RUNS = st.lists(st.tuples(st.sampled_from(["3", "4.1", "6", "7"]), _STATUSES, st.integers(-99, 99)), max_size=6)


@given(st.lists(_RUNS.filter(bool), max_size=5))
def test_whatever_was_run_it_is_counted_once(dossiers: list[list[tuple[str, str, int]]]) -> None:
    found = [report.summarise(f"I-{n}", logs_of(*(ran(*r) for r in runs))) for n, runs in enumerate(dossiers)]
    sums = report.report(found)
    assert len(sums["incidents"]) == len(report.table(found)) == len(dossiers)
    for incident, runs in zip(found, dossiers, strict=True):
        seen = [s for section, s, _ in runs if section != "7"]
        assert incident.worst == max(seen, key=lambda s: Status[s].rank, default="")
        assert incident.last == (seen[-1] if seen else "")
    assert json.loads(json.dumps(sums)) == sums
    for lang in LANGUAGES:
        with using(lang):
            assert report.as_text(report.table(found)) and report.as_html(report.table(found))


# The period ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "until", "found"),
    [
        (None, None, "1234"),
        ("2026-03-03", None, "234"),
        ("2026-03-04", "2026-03-04", "3"),  # a day is a whole one, in UTC
        (None, "2026-03-03", "12"),
        ("2026-03-03T12:00:00Z", None, "234"),
        ("2026-03-03T21:00:01+09:00", None, "34"),  # one second later, elsewhere
        ("2026-03-03T12:00:00+09:00", None, "234"),
        (None, "2026-03-03T12:00:00Z", "1"),  # a moment is not in it
        ("28d", None, "34"),
        ("28d", "672h", ""),
    ],
)
def test_the_period(output: Path, since: str | None, until: str | None, found: str) -> None:
    assert "".join(i.incident[-1] for i in read(output, since, until)) == found


@pytest.mark.parametrize(
    "text",
    ["", "x", "30", "30 years", "2026-13-01", "2026-03-01T12:00", "now", "NaT", "９９d", "999999999999d", "2026"],
)
def test_what_is_no_time_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--since") as e:
        _parse_limit("--since", text, NOW)
    assert "\n" not in str(e.value)


def test_a_period_that_ends_before_it_begins_is_refused(output: Path) -> None:
    assert isinstance(said(output, "--since", "1d", "--until", "2d").exception, UsageError)


# The command --------------------------------------------------------------------------------------------------


def test_the_command_on_the_sample(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "outputs" / "sample", tmp_path / "sample")
    shutil.copy(ROOT / "outputs" / "README.md", tmp_path)  # a file is no incident
    done = said(tmp_path)
    assert done.return_value == 0 and not done.stderr
    assert "1 incident\n" in done.output and "CRITICAL" in done.output and "delivery worker" in done.output
    (one,) = valid(json.loads(said(tmp_path, "--json").stdout), "report.v2")["incidents"]
    assert one["modes"] == ["FM-NOTI-06"] and one["begun_by"] == "alert" and one["ttr_s"] is None
    lines = map(json.loads, (tmp_path / "sample" / LOG).read_text().splitlines())
    assert pd.Timestamp(one["begun"]) == min(pd.Timestamp(line["started"]) for line in lines if "started" in line)
    assert sorted(one["sections"]) == ["3", "4.1", "4.3"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_page_and_table(output: Path, tmp_path: Path, lang: str) -> None:
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    keep(output, "INC-5", runs=[ran("3", "OK", 9000)], notes=[noted(8000, "alert", "<b>Rule firing")])
    done = said(output, "--page", str(page), "--csv", str(table), "--lang", lang)
    assert done.return_value == 0 and "Mori" in done.output and "2026-05-01" in done.output
    html = page.read_text()
    assert "INC-1" in html and "rb-CRITICAL" in html and "&lt;b&gt;Rule" in html and "<b>Rule" not in html
    assert "://" not in html and "<script" not in html
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [r["incident"] for r in rows] == ["INC-1", "INC-2", "INC-3", "INC-4", "INC-5"]
    assert (
        rows[0]["ttr_s"] == "600.0"
        and rows[0]["ttd_s"] == ""
        and rows[1]["measures"] == "a probe (Mori, 2026-05-01) / two pods (Sato)"
    )
    assert rows[0]["actions"] == "✖ restart worker / ✔ restart worker / ? restart worker / ? restart worker"


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("+1", "'+1"), ("@SUM(1)", "'@SUM(1)"), ("-cmd", "'-cmd"), (" =1", "' =1"), ("＝1", "'＝1"),
     ("\tx", "'\tx"), ("-3.5", "-3.5"), ("a=1", "a=1"), ("", "")],
)  # fmt: skip
def test_a_spreadsheet_runs_no_cell(output: Path, text: str, cell: str) -> None:
    row = replace(read(output)[0], alert=text, ttr_s=-2.0)
    (told,) = csv.DictReader(io.StringIO(report.as_csv(report.table([row]))))
    assert (told["alert"], told["ttr_s"]) == (cell, "-2.0")


def test_no_incident_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "baseline-production").mkdir()
    (tmp_path / "baseline-production" / "usual.jsonl").write_text('{"at": 1}\n')
    (tmp_path / "INC-0" / "lab").mkdir(parents=True)
    for output in (tmp_path, tmp_path / "nowhere"):
        done = said(output, "--csv", str(tmp_path / "table.csv"), "--page", str(tmp_path / "page.html"))
        assert done.return_value == 0 and "0 incidents" in done.output and not done.stderr
        assert (tmp_path / "table.csv").read_text().startswith("incident,begun,target,")


@pytest.mark.parametrize(
    "broken",
    [b"{", b"\xff\xfe", b"[]", b"7", b'{"section": "3"}', b'{"started": "soon"}', b'{"started": null, "section": "3"}',
     b'{"started": "2026-03-01T12:00:00Z", "section": "3", "status": "FINE"}',
     b'{"name": "r", "started": "2026-03-01T12:00:00Z", "section": "3", "status": ["OK"]}',
     b'{"name": "r", "started": "2026-03-01", "section": "6", "status": "OK", "parameters": {"detected_at": 7}}',
     b'{"started": "2026-03-01T12:00:00Z", "verdict": 5}'],
)  # fmt: skip
def test_a_dossier_that_can_not_be_read_is_one_line(output: Path, broken: bytes) -> None:
    (output / "INC-2" / LOG).write_bytes(broken + b"\n")
    done = said(output, "--json")
    assert done.return_value == 3
    document = valid(json.loads(done.stdout), "report.v2")
    assert [i["incident"] for i in document["incidents"]] == ["INC-1", "INC-3", "INC-4"]
    assert document["unread"] == ["INC-2"]
    assert done.stderr.startswith("INC-2 could not be read: ") and done.stderr.count("\n") == 1


def test_what_a_person_typed_loses_no_dossier(output: Path) -> None:
    for typed in ("origin: [a]", "timeline: soon", "measures: {a: b}", "measures: [[", "origin: {", "? [x]\n: y"):
        Archive(str(output), "INC-2").write(MARKDOWN, f"```yaml\n{typed}\n```\n".encode() + b"\xff")
        assert (found := read(output)[1]).incident == "INC-2" and not found.modes and found.ttd_s is None


def test_places_and_modes_of_another_runbook_stand_as_they_are(output: Path) -> None:
    other = concluded(ran("3", "CRITICAL", 9000, "furnace"), failure_modes=[mode("FM-OVEN-1")])
    keep(output, "INC-5", runs=other)
    done = said(output, "--since", "2026-03-07")
    assert "furnace" in done.output and "FM-OVEN-1" in done.output


def test_where_it_can_not_be_written_is_said_in_a_line(output: Path, tmp_path: Path) -> None:
    for option in ("--page", "--csv"):
        failed = said(output, option, str(tmp_path / "no" / "x")).exception
        assert isinstance(failed, UsageError) and "could not be written: No such file" in str(failed)


@pytest.mark.parametrize("store", ["", "memory://report"])
def test_the_newest_dossiers_are_searched_whatever_their_names(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_SEARCHED", 2)
    verdict = record.verdict(Verdict(Status.CRITICAL, "relay", "high", (RankedMode("FM-OB-01", 0.9),)))
    output = store or str(tmp_path)
    for n, name in enumerate(("Z-OLD", "A-NEW", "M-NEWER", "B-NOW")):
        (told,) = concluded(ran("3", "CRITICAL", n, "relay"), **verdict)[-1:]
        Archive(output, name).add_line(VERDICT, told) if store else keep(tmp_path, name, runs=[told])
        if not store:
            os.utime(tmp_path / name / LOG, (n, n))
    assert [i.incident for i in report.seen_before(Archive(output, "B-NOW"))] == ["M-NEWER", "A-NEW"]


def test_what_was_like_it_before_is_named_with_what_helped(tmp_path: Path) -> None:
    def incident(name: str, minutes: float, place: str, *modes: str, **logs: Any) -> None:
        verdict = Verdict(Status.CRITICAL, place, "high", tuple(RankedMode(m, 0.9) for m in modes))
        told = concluded(ran("3", "CRITICAL", minutes, place), **record.verdict(verdict))[-1:]
        keep(tmp_path, name, runs=told, **logs)

    incident("SAME", 0, "relay", "FM-OB-01", actions=[acted("a", 5, "done", True)])
    incident("ELSEWHERE", 10, "receiver", "FM-NOTI-03")
    incident("NOW", 60, "relay", "FM-OB-01")
    incident("LATER", 90, "relay", "FM-OB-01")
    now = Archive(str(tmp_path), "NOW")
    assert [i.incident for i in report.seen_before(now)] == ["SAME"]
    assert report.seen_before(Archive(str(tmp_path), "NOBODY")) == []
    overview.write_index(now)
    page = now.read(overview.INDEX).decode()
    assert 'href="../SAME/index.html"' in page and "✔ restart worker" in page and "../ELSEWHERE" not in page

    def shown(place: str, *modes: str) -> str:
        said = Verdict(Status.CRITICAL, place, "high", tuple(RankedMode(m, 0.9) for m in modes))
        rb = SimpleNamespace(verdict=lambda: said, context=SimpleNamespace(archive=now), opened="x")
        found = report.similar_incidents(cast(Session, rb))
        return "\n".join(map(str, found._repr_mimebundle_().values())) if found else ""

    assert "ELSEWHERE" in shown("receiver", "FM-NOTI-03") and "SAME" not in shown("receiver", "FM-NOTI-03")
    with using("ja"):
        likely = shown("relay", "FM-OB-01")
    assert "✔ restart worker" in likely and "過去の類似" in likely and "href" not in likely
    assert shown("relay") == shown("subscriber", "FM-NATS-01") == ""
