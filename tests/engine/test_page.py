"""The dossier's page: its timeline, and where its numbers are from."""

from __future__ import annotations

import base64
import errno
import hashlib
import html
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from runbook_lib.book import catalog, messages
from runbook_lib.cli.common import parse_parameters
from runbook_lib.dossier import artifact, course, overview, postmortem
from runbook_lib.model.finding import Status, Verdict, judged, replace, say
from runbook_lib.privacy.masking import Masker
from runbook_lib.runs import batch
from runbook_lib.sources.settings import Target
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION, NOTE, PARTIAL, Archive
from runbook_lib.store.files import read_regular
from runbook_lib.store.lines import RunLine
from runbook_lib.store.run import Run, run_to_json
from runbook_lib.view import render, timeline
from runbook_lib.view.timeline import Lane, LaneSeries, Mark
from tests.kit import ROOT
from tests.kit.dossiers import LINES
from tests.kit.logs import logs_of

SAMPLE = ROOT / "outputs" / "sample"
START = pd.Timestamp("2026-11-27T13:00:00Z")


def at(minute: float) -> pd.Timestamp:
    return START + pd.Timedelta(minutes=minute)


def verdict(begin: float, waiting: list[float | None], status: str = "CRITICAL", **more: Any) -> dict[str, Any]:
    past = {"since": at(begin).isoformat(), "step_s": 60.0, "waiting": waiting, "came": [], "gone": [], "limit": 50.0}
    said = {"status": status, "stuck_at": None, "hops": [{"name": "relay", "past": past}], "failure_modes": []}
    ends = at(begin + len(waiting)).isoformat()
    return {"started": ends, "as_of": ends, "sections": ["3"], "verdict": said | {"ended": None}} | more


def lanes(*manifest: dict[str, Any], **more: Any) -> dict[str, Lane]:
    return {lane.name: lane for lane in course.lanes(logs_of(*manifest, **more), ())}


def test_later_runs_complete_a_series_and_what_nobody_read_stays_unknown() -> None:
    lane = lanes(verdict(0, [1.0, 2.0, None]), verdict(1, [7.0]), verdict(9, [0.0]))["outbox relay: waiting"]
    (series,) = lane.series
    assert [(b, v) for b, _, v in series.values] == [(at(0), 1.0), (at(1), 7.0), (at(9), 0.0)]
    assert list(lane.covered) == [(at(0), at(2)), (at(9), at(10))]


def test_zero_is_drawn_and_no_data_is_hatched() -> None:
    known = LaneSeries("waiting", "waiting", ((at(0), at(1), 0.0), (at(1), at(2), 4.0), (at(5), at(6), 0.0)))
    page = timeline.html([Lane("relay", series=(known,)), Lane("locks", known=())], at(0), at(10))
    assert page.count("<polyline") == 2, "interrupted where nothing is known"
    covered = [(float(a), float(b)) for a, b in re.findall(r'class="known" data-t="([\d.]+)" data-u="([\d.]+)"', page)]
    assert covered == [(0.0, 120.0), (300.0, 360.0)]
    bottom = re.findall(r'data-p="60.0,([\d.]+) ', page) + re.findall(r'data-p="360.0,([\d.]+) ', page)
    assert len(set(bottom)) == 1 and page.count("url(#rb-none)") == 2
    assert '<td class="n">0</td>' in page and page.count("<tr>") == 2 + 3, "a table for the chart"


def test_the_course_of_an_incident() -> None:
    done = LINES[ACTION] | {"verified": True, "effect": {"en": "it flows", "ja": ""}}
    found = lanes(
        verdict(0, [9.0], onset=at(0.5).isoformat()),
        verdict(2, [0.0], status="OK"),
        {"started": at(0).isoformat(), "parameters": {"detected_at": at(0).isoformat()}},
        actions=[done | {"time": at(1).isoformat()}, done | {"time": at(1).isoformat(), "result": "begun"}],
        notes=[{"time": at(0).isoformat(), "who": "alert", "text": "OutboxLagging firing"},
               {"time": at(1).isoformat(), "who": "aoki", "text": "called"}],
    )  # fmt: skip
    assert [m.text for m in found["Alerts"].marks] == ["OutboxLagging firing", "detected"]
    assert [(m.at, m.status) for m in found["Actions"].marks] == [(at(1), "OK")]
    assert [m.text for m in found["Notes"].marks] == ["aoki: called"]
    assert [(m.at, m.status) for m in found["Onset, recovery"].marks] == [(at(0.5), "CRITICAL"), (at(3), "OK")]
    since, until = course.span([*found.values()]) or (at(9), at(9))
    assert since < at(3) - course.MIN_SPAN and at(3) < until < at(4)


RAMP: list[float | None] = [0.0 if minute < 50 else 9.0 for minute in range(61)]
SIX_HOURS = [verdict(m, RAMP, onset=at(50).isoformat()) for m in range(0, 360, 45)]
RAN = {"section": "3", "started": at(5000).isoformat(), "parameters": {"target": "prod"}}


def noted(minute: float, who: str = "aoki") -> dict[str, Any]:
    return {"time": at(minute).isoformat(), "who": who, "text": "-"}


@pytest.mark.parametrize(
    ("verdicts", "notes", "entries", "first", "last"),
    [
        ([verdict(0, RAMP, onset=at(60).isoformat()), verdict(1, RAMP, "OK")], [noted(900)], [], 59, 62),
        ([verdict(0, RAMP, onset=at(60).isoformat()), verdict(1, RAMP, "WARNING")], [noted(63)], [], 59, 63),
        ([verdict(0, RAMP, onset=at(65).isoformat()), verdict(1, RAMP, "OK")], [], [], 61, 62),
        ([verdict(0, RAMP)], [noted(55, "alert"), noted(900)], [], 43, 61),
        ([*SIX_HOURS, verdict(400, [0.0], "OK")], [noted(3000)], [], 6, 401),
        (SIX_HOURS, [noted(500), noted(3000)], [], -7, 500),
        ([verdict(0, RAMP, onset=at(50).isoformat(), started=RAN["started"])], [noted(5001)], [RAN], 48, 61),
    ],
    ids=["recovered", "present", "clocks-differ", "no-onset", "six-hours", "six-hours-present", "past"],
)
def test_the_timeline_opens_on_the_incident(
    verdicts: list[Any], notes: list[Any], entries: list[Any], first: float, last: float
) -> None:
    found = [*lanes(*verdicts, *entries, notes=notes).values()]
    opens = course.incident(found, logs_of(*verdicts, *entries))
    assert opens and opens[0] == pytest.approx(at(first), abs=pd.Timedelta(minutes=1))
    assert at(last) <= opens[1] <= at(last) + (opens[1] - opens[0]) * 0.05
    with messages.using("ja"):
        page = timeline.html(found, *(course.span(found) or opens), opens)
        assert render.when(opens[0]) in page and messages.text(say("timeline.zoom_out")) in page
    assert all(-1 < float(x) < timeline.WIDTH for x in re.findall(r'<text x="([\d.-]+)"', page)), "the axis is its own"


def test_without_an_incident_the_timeline_opens_on_all_of_it() -> None:
    well, short = [verdict(0, RAMP, "OK")], [verdict(50, [9.0], onset=at(42).isoformat())]
    for verdicts in (well, short):
        found = [*lanes(*verdicts).values()]
        assert course.span(found) and course.incident(found, logs_of(*verdicts)) is None
        assert "rb-whole" not in timeline.html(found, at(0), at(9))


def test_a_rate_is_drawn_over_all_of_its_interval() -> None:
    known = LaneSeries("came", "came", ((at(0), at(1), 3.0), (at(1), at(2), 4.0)))
    page = timeline.html([Lane("relay", series=(known,))], at(0), at(2))
    (line,) = re.findall(r'data-p="(.*?)"', page)
    assert [point.partition(",")[0] for point in line.split()] == ["0.0", "60.0", "60.0", "120.0"]


@pytest.mark.parametrize(("text", "numbers"), [
    ("595 rows are due for up to 610 s, FM-NOTI-06 since 2026-11-27T13:19:27Z", ["595", "610"]),
    ("処理対象 1,595 件(最古 0.5 秒)", ["1,595", "0.5"]),
    ("<b>nothing</b>", []),
])  # fmt: skip
def test_numbers_are_marked_and_the_text_is_escaped(text: str, numbers: list[str]) -> None:
    marked = render.mark_numbers(text)
    assert re.findall(r"<b>([\d,.]+)</b>", marked) == numbers
    assert html.unescape(re.sub(r"<b>|</b>", "", marked)) == text


def test_a_command_in_a_sentence_is_code_and_its_numbers_are_no_values() -> None:
    text = "Restart <it>: `kubectl -n a rollout 7 & b` (procedure 5.1); `unclosed"
    marked = render.mark_numbers(text)
    assert marked == (
        "Restart &lt;it&gt;: <code>kubectl -n a rollout 7 &amp; b</code> (procedure <b>5.1</b>); `unclosed"
    )
    found = judged(say("response.do", title="Restart", command="kubectl <a>", section="5.1"))
    shown = render.Card(replace(found, step="3.3"), "")._repr_mimebundle_()
    assert "<code>kubectl &lt;a&gt;</code>" in shown["text/html"] and "`kubectl <a>`" in shown["text/plain"]


def test_a_table_shows_no_words_of_the_language_it_was_made_with() -> None:
    cells = {"met": [True, False, None], "name": [None, "None", "x"], "n": [1, None, 3], "listed": [["a"], None, []]}
    table = render._table_html(pd.DataFrame(cells))
    assert re.findall("<td>(.*?)</td>", table) == ["✔", "", "1", "[a]", "✖", "None", "", "", "", "x", "3", "[]"]


@pytest.mark.parametrize("lang", messages.LANGUAGES)
def test_each_headline_with_a_number_names_its_queries_its_evidence_and_the_command(lang: str, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, tmp_path / "sample")
    with messages.using(lang):
        page = overview.page(Archive(str(tmp_path), "sample"))
    entries = [json.loads(line) for line in (SAMPLE / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    digests = {d[:12] for e in entries for n, d in e["sha256"].items() if n.startswith("evidence/2")}
    shown = re.findall(r'<div class="rb-finding".*?</details>\n', page, re.DOTALL)
    assert len(shown) == 15
    for finding in (f for f in shown if "<b>" in f):
        rows = re.findall(r'<tr><td>(.+?)</td><td>(.+?)</td><td class="n">[\d,]+</td>', finding)
        assert rows, finding
        assert set(re.findall(r'<code title="SHA-256">(\w+)</code>', finding)) <= digests and "data-copy" in finding
        assert re.search(r"runbook run [\d.]+ --target default --incident sample", finding)
    assert len(page.encode()) < 1_500_000 and not re.search(r"(?:src|href)=.(?:https?:)?//", page)
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_command_to_copy_asks_the_same_and_changes_nothing() -> None:
    parameters = {"target": "eu 1", "incident_id": "INC-1", "window_minutes": 30, "to_time": "2026-11-26T02:13:00Z"}
    changed = parameters | {"lang": "en", "execute": True, "approved_by": "Aoki", "detected_by": None}
    command = "runbook run 4.1 --target 'eu 1' --incident INC-1 -p window_minutes=30 -p to_time=2026-11-26T02:13:00Z"
    assert render.run_again(run_line(changed)) == command
    again = render.run_again(run_line(changed | {"lang": "ja"}))
    assert sorted(shlex.split(again)) == sorted([*shlex.split(command), "--lang", "ja"])
    parse_parameters(tuple(w for n, w in enumerate(shlex.split(again)) if shlex.split(again)[n - 1] == "-p"))


def run_line(parameters: dict[str, Any]) -> RunLine:
    (line,) = logs_of({"section": "4.1", "started": at(0).isoformat(), "parameters": parameters}).runs
    return line


@pytest.mark.parametrize("why", ["missing or changed", "Permission denied"])
def test_a_run_whose_evidence_is_not_read_is_no_source_and_named(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SAMPLE, tmp_path / "sample")
    (evidence,) = (tmp_path / "sample").glob("evidence/*-4.1-*.json")
    evidence.write_text(evidence.read_text(encoding="utf-8").replace("595", "5"), encoding="utf-8")

    def denied(path: Path) -> bytes:  # a mode of 000 does not stop root
        if path == evidence and why == "Permission denied":
            raise PermissionError(errno.EACCES, why, str(path))
        return read_regular(path)

    monkeypatch.setattr("runbook_lib.store.archive.read_regular", denied)
    page = overview.page(Archive(str(tmp_path), "sample"))
    assert 'id="step-3.1"' in page and 'id="step-4.1.1"' not in page
    (line,) = re.findall("<p><b>Evidence that could not be read.*", page)
    assert evidence.stem in line and why in line


# Which verdict is the present one -----------------------------------------------------------------------------


def ran(
    archive: Archive, minute: float, status: str, headline: str, *, of: int = 2, name: str = "", section: str = "3",
    target: str = "prod",
) -> None:  # fmt: skip
    """Add `of` runs of 3.1, each with its number in its headline, and the verdict over the first of them."""
    entries = list[dict[str, Any]]()
    for n in range(of):
        found = replace(judged(say("ui.noted", time="", who="", text=f"{headline} {n}")), step="3.1")
        content = json.dumps(run_to_json(Run("3", {}, [record.finding(found)]))).encode()
        marks = {"name": f"{minute}-{n}-3-{status}{name}", "section": "3", "started": at(minute + n / 9).isoformat()}
        told = {"status": status, "stuck_at": None, "confidence": "high", "problem": ""}
        entries.append({**marks, **told, "parameters": {"target": target}})
        archive.append(entries[-1], {f"evidence/{marks['name']}.json": content})
    verdict = record.verdict(Verdict(Status[status], None, "high", next_sections=(f"4.{minute}",)))
    document = {"runs": [{"artifact": {"ipynb": f"{entries[0]['name']}.ipynb"}}]}
    started = entries[0]["started"]
    line = {"sections": [section], "started": started, "as_of": started, "verdict": verdict}
    archive.append(line | {"name": f"{minute}{name}.json"}, {f"{minute}{name}.json": json.dumps(document).encode()})


def banners(page: str) -> list[str]:
    return re.findall(r"<h2>(Now:.*?)</h2>", page)


def test_a_look_at_a_part_does_not_say_that_all_is_well(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    ran(archive, 30, "CRITICAL", "it waits")
    ran(archive, 33, "OK", "no duplicate", section="4.2")
    ran(archive, 20, "WARNING", "of a slow command that began before", name="-late")
    (now,) = banners(page := overview.page(archive))
    assert "CRITICAL" in now and "no step finds a problem" not in page
    ran(archive, 40, "OK", "it flows", section="6")
    (now,) = banners(overview.page(archive))
    assert "OK" in now


def test_the_findings_are_those_of_the_verdict_and_not_of_a_second_look(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    ran(archive, 1, "CRITICAL", "look", of=course.MAX_READ + 2)
    page = overview.page(archive)
    assert page.count('class="rb-finding"') == 1 and "look <b>0" in page


def test_each_target_of_an_incident_has_its_present_verdict(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    ran(archive, 1, "CRITICAL", "east waits", target="east")
    ran(archive, 2, "OK", "west flows", target="west")
    page = overview.page(archive)
    worst, other = banners(page)
    assert "east" in worst and "CRITICAL" in worst and "west" in other and "OK" in other
    assert page.count('class="rb-finding"') == 2 and page.count('id="step-3.1"') == 1


def test_a_verdict_whose_first_run_was_not_kept_is_of_the_incidents_target(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    ran(archive, 1, "CRITICAL", "it waits")
    lost = json.loads(archive.raw()[-1]) | {"started": at(5).isoformat(), "name": "lost.json"}
    archive.append(lost, {"lost.json": b"{}"})
    assert len(banners(overview.page(archive))) == 1


def test_who_writes_the_page_last_has_seen_the_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, render_page = Archive(str(tmp_path), "INC-1"), overview._render_page
    notes = iter(["called Mori", "called Abe"])
    archive.prepare()

    def meanwhile(*given: Any) -> str:
        """Render the page while another command ends."""
        page = render_page(*given)
        if text := next(notes, ""):
            archive.add_line(NOTE, {"time": at(0).isoformat(), "who": "mori", "text": text})
        return page

    monkeypatch.setattr(overview, "_render_page", meanwhile)
    overview.write_index(archive)
    assert "called Abe" in archive.read(overview.INDEX).decode()
    notes = iter(map(str, range(99)))
    overview.write_index(archive)
    assert int(next(notes)) < 9, "it ends also while others write all the time"


def test_a_series_and_a_recovery_are_of_one_target_in_the_order_of_their_time() -> None:
    entries = [
        {"section": "3", "started": at(m).isoformat(), "parameters": {"target": target}}
        for m, target in ((2, "east"), (3, "west"), (4, "east"))
    ]
    bad, other, well = verdict(1, [9.0]), verdict(2, [5.0], "OK"), verdict(3, [0.0], "OK")
    found = lanes(well, other, bad, *entries)
    assert [s.values[0][2] for s in found["west outbox relay: waiting"].series] == [5.0]
    assert [v for _, _, v in found["east outbox relay: waiting"].series[0].values] == [9.0, 0.0]
    assert [(m.at, m.status) for m in found["Onset, recovery"].marks] == [(at(4), "OK")]


def test_a_mark_at_the_edge_stays_in_the_drawing() -> None:
    late = Mark(at(12), "later", until=None)
    held = Mark(at(-5), "held", "WARNING", until=at(1))
    with messages.using("ja"):
        page = timeline.html([Lane("locks", (late, held))], at(0), at(10))
    assert "later" not in page and 'data-t="0.0" data-u="60.0"' in page
    assert messages.text(say("timeline.no_data"), "ja") in page


TRACEBACK = ["\x1b[0;31mKeyError\x1b[0m", "'x'"]
FIGURE, ALT = {"image/png": "AA==\n", "text/plain": "<Figure>"}, {"image/png": {"alt": "rows over time"}}


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (new_output("stream", text="a < b\x1b[31m red\x1b[0m"), '<pre class="printed">a &lt; b red</pre>'),
        (new_output("error", evalue="'x'", traceback=TRACEBACK), '<pre class="printed">KeyError\n&#39;x&#39;</pre>'),
        (new_output("display_data", {"text/html": "<b>1</b>", "text/plain": "1"}), "<b>1</b>"),
        (new_output("display_data", FIGURE), '<img src="data:image/png;base64,AA==" alt="&lt;Figure&gt;">'),
        (new_output("display_data", {"image/png": "AA=="}, metadata=ALT), 'alt="rows over time"'),
        (new_output("display_data", {"text/markdown": "*so*"}), "<em>so</em>"),
        (new_output("execute_result", {"text/plain": "<object>"}), '<pre class="printed">&lt;object&gt;</pre>'),
        (new_output("display_data", {"text/html": "<p>x</p><script src='http://h/s'></script>"}), "<p>x</p>\n"),
    ],
)
def test_each_output_is_shown_in_its_most_telling_form(output: nbformat.NotebookNode, shown: str) -> None:
    page = artifact.html(new_notebook(cells=[new_code_cell("", outputs=[output])]), "")
    assert shown in page
    assert "\x1b" not in page and "<script" not in page


NO_PAGES = (
    "javascript:alert(1)",
    " JaVa\tScRiPt:alert(1)",
    "data:text/html,<b>",
    "vbscript:x",
    "file:///etc",
    "mailto:a",
)


@pytest.mark.parametrize("address", [*NO_PAGES, "https://grafana.example/d/1?a=b", "HTTP://grafana.example"])
def test_only_an_address_of_the_web_becomes_a_link(tmp_path: Path, address: str) -> None:
    shutil.copytree(SAMPLE, tmp_path / "sample")
    archive = Archive(str(tmp_path), "sample")
    for kind in ("verdict", "section"):  # the newest of each, by another name and with another dashboard
        entry = next(e for e in reversed(archive.artifacts()) if kind in e)
        kept = {k: v for k, v in entry.items() if k not in ("previous", "sha256")}
        archive.append(kept | {"name": address, "dashboard": address}, {})
    overview.write_index(archive)
    header = render.Header("4.1", "t", "INC-1", "prod", at(0), 60, dashboard=address)
    found = Verdict(Status.OK, None, "high")
    form = f"<form action=\"{address}\"><svg><a xlink:href='{address}'>x</a></svg><a href={html.escape(address)}>c</a>"
    cells = [
        new_markdown_cell(f"[a](<{address}>) <a href='{address}'>b</a>"),
        new_code_cell("", outputs=[new_output("display_data", {"text/html": form})]),
    ]
    pages = [
        archive.read(overview.INDEX).decode(),
        artifact.html(new_notebook(cells=cells), ""),
        postmortem.page(f"[a](<{address}>)", "INC-1"),
        render.banner(header, found)._repr_mimebundle_()["text/html"],
    ]
    links = re.findall(r"""(?:href|action)=(?:"([^"]*)|'([^']*)|([^\s>"']+))""", "".join(pages))
    addresses = {html.unescape("".join(link)) for link in links}
    elsewhere = {a for a in addresses if urlsplit("".join(a.split())).scheme} - {"data:,"}  # no icon
    assert elsewhere == (set() if address in NO_PAGES else {address})


def test_every_page_has_a_policy_that_lets_its_own_script_run(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, tmp_path / "sample")
    with messages.using("ja"):
        pages = [overview.page(Archive(str(tmp_path), "sample")), postmortem.page("# x", "INC-1")]
    page, *_ = pages = [*pages, artifact.html(new_notebook(), "")]
    for shown in pages:
        (policy,) = re.findall(
            r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', shown.partition("<style>")[0]
        )
        assert "default-src 'none'" in html.unescape(policy) and "script-src 'sha256-" in html.unescape(policy)
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page


def test_characters_that_are_not_seen_are_shown_in_a_page() -> None:
    found = replace(judged(say("response.do", title="a\u202eb\x9b", command="\u2066c", section="5.1")), step="3.3")
    page = artifact.html(new_notebook(cells=[new_markdown_cell("d\u202e")]), "e\x1b")
    shown = render.Card(found, "")._repr_mimebundle_()["text/html"] + page
    assert r"a\u202eb\x9b" in shown and r"\u2066c" in shown and r"d\u202e" in shown and r"e\x1b" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_secrets_and_users_are_removed_from_every_form_of_an_output() -> None:
    said = {"user_id": "alice", "rows": [{"note": "password=hunter2-Kx9", "n": 1}]}
    forms = {
        "application/json": said,
        "application/vnd.plotly.v1+json": said,
        "image/svg+xml": "<svg><text>userId=alice password=hunter2-Kx9</text></svg>",
        "application/javascript": "show('userId=alice')",
        "image/png": "AA==",
    }
    outputs = [
        new_output("display_data", forms),
        new_output("stream", text="\x1b[1muserId\x1b[0m=\x1b[31malice\x1b[0m \x1b[32mpassword\x1b[0m=hunter2-Kx9"),
        new_output("error", evalue="x", traceback=["\x1b[0;31mpassword=\x1b[0mhunter2-Kx9", "\x1b[31mred\x1b[0m"]),
        new_output("display_data", {record.RUN_MIME: {}, "application/json": {"user_id": "as it was masked"}}),
    ]
    nb = new_notebook(cells=[new_code_cell("", outputs=outputs)])
    masker = Masker((), b"key")
    artifact.scrub(nb, masker)
    assert "hunter2-Kx9" not in nbformat.writes(nb) and "alice" not in nbformat.writes(nb)
    data = nb.cells[0].outputs[0].data
    assert data["application/json"] == {"user_id": masker.person("alice"), "rows": [{"note": "password=***", "n": 1}]}
    assert data["image/png"] == "AA==" and nb.cells[0].outputs[2].traceback[1] == "\x1b[31mred\x1b[0m"
    assert nb.cells[0].outputs[3].data["application/json"] == {"user_id": "as it was masked"}


def test_a_form_that_cannot_be_cleaned_is_left_out() -> None:
    output = new_output("display_data", {"application/json": {"a": 1}, "text/plain": "1"})
    nb = new_notebook(cells=[new_code_cell("", outputs=[output])])
    artifact.clean_texts(nb, lambda text: text.replace("{", ""))
    assert nb.cells[0].outputs[0].data == {"text/plain": "1"}


def test_the_error_of_an_unfinished_run_is_text_in_its_page(tmp_path: Path) -> None:
    archive, error = Archive(str(tmp_path), "INC-1"), "a cell failed: E: <img src=x onerror=y> *so* <b>bold</b>\n# next"
    archive.prepare()
    given = Target.model_construct(), catalog.load()
    request = batch.Request("4.1", {"incident_id": "INC-1"}, *given, str(tmp_path), 0.0)
    result = batch._store_artifact(request, archive, Masker(), "s", None, at(0).isoformat(), error)
    page = Path(str(result.html)).read_text()
    assert "<img" not in page and "<b>bold" not in page and html.escape("<img src=x onerror=y> *so*") in page
    assert result.problem == error


def test_text_and_code_of_a_notebook() -> None:
    cells = [
        new_markdown_cell("# A\n\n[b](../docs/c.md) [d](https://e) `f`\n\n| g |\n|-|\n| h |"),
        new_code_cell("i < j"),
    ]
    page = artifact.html(new_notebook(cells=cells), "")
    assert "<h1>A</h1>" in page and "<td>h</td>" in page
    assert '<p>b <a href="https://e">d</a> <code>f</code></p>' in page
    assert '<pre class="source">i &lt; j</pre>' in page


def test_the_partial_notebook_of_a_dead_runner_is_its_own(tmp_path: Path) -> None:
    """Another target's run of the same section, begun later, has one as well."""
    archive, scratch = Archive(str(tmp_path), "INC-1"), tmp_path / "scratch"
    archive.prepare()
    scratch.mkdir()
    stems = [archive.reserve(f"2026013{n}T030000Z-3") for n in (0, 1)]
    for stem in stems:
        written = new_notebook(cells=[new_markdown_cell(stem)])
        archive.write(f"{stem}{PARTIAL}", nbformat.writes(written).encode())
    (scratch / "stem").write_text(stems[0])
    request = batch.Request("3", {"incident_id": "INC-1"}, Target.model_construct(), catalog.load(), str(tmp_path), 0.0)
    started = batch._StartedRun(0, request, scratch, "2026-01-30T03:00:00+00:00", 0.0)
    found = batch._result_of_dead_runner(started, "it was killed")
    assert found.ipynb == f"{archive.place}/{stems[0]}{PARTIAL}"
