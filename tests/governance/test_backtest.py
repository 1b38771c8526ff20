"""Backtests: what today's documents, or an edit of them, say about archived evidence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from runbook_lib.book import catalog, messages, pack
from runbook_lib.book.catalog import CatalogError
from runbook_lib.book.parameters import validate
from runbook_lib.checks.check import checks
from runbook_lib.checks.context import JudgeInput, open_context
from runbook_lib.cli.main import cli
from runbook_lib.dossier import backtest, rejudge
from runbook_lib.model.finding import Finding, Frames, Status, judged, say
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from runbook_lib.sources.settings import Settings
from runbook_lib.store import record
from runbook_lib.store.archive import LOG, Archive
from runbook_lib.store.files import digest
from runbook_lib.view import render
from tests.kit import ROOT
from tests.kit.schemas import valid

Edited = Callable[..., Path]
#: A worker may be silent for hours.
SLOWER = {"`delivery.silence`": "| `delivery.silence` | 5000 | 15000 | s | 4.1.1, 4.3.2, 5.1.3 | - |"}
#: The same as a target's own.
OWN = {"delivery.silence": "5000 / 15000 s"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder with the sample dossier, which may be changed."""
    shutil.copytree(ROOT / "outputs" / "sample", tmp_path / "out" / "sample")
    return tmp_path / "out"


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    """Today's documents, in one lines replaced, each by one with as many cells."""
    (kept,) = catalog.read_texts(pack.active_runbook().packs[:1]).values()

    def edit(name: str, **lines: str) -> Path:
        text = kept[name]
        for start, line in lines.items():
            cells = line.count("|") - 2
            text, n = re.subn(rf"(?m)^\| {re.escape(start)} (?:\|[^|\n]*){{{cells}}}\|$", line, text)
            assert n == 1, start
        documents = tmp_path / "documents"
        documents.mkdir(exist_ok=True)
        for each, as_it_was in kept.items():
            (documents / f"{each}.md").write_text(text if each == name else as_it_was)
        return documents

    return edit


def judged_all(output: Path, given: Path | None) -> dict[str, Any]:
    report, unread = backtest.run(str(output), ["sample"], given)
    assert not unread and report["runs"] == 3 and report["steps"] >= 10
    return report


def flips(report: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(f["step"], f["was"], f["now"]) for f in report["flips"] if f["step"]}


def test_the_same_documents_flip_nothing(output: Path, edited: Edited) -> None:
    for given in (edited("slo"), None):
        found = judged_all(output, given)
        assert (found["flips"], found["detected"], found["alarms"]) == ([], [], {"was": 3, "now": 3})


def test_what_today_s_code_can_not_judge_is_said(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = checks()

    def no_more(frames: Frames, given: JudgeInput) -> Finding:
        raise KeyError("of another time")

    monkeypatch.setattr(rejudge, "checks", lambda: known | {"4.3.2": replace(known["4.3.2"], judge=no_more)})
    report, unread = backtest.run(str(output), ["sample"], None)
    assert report["runs"] == 2 and [t.key for t in unread] == ["seal.not_judged"]


def test_another_threshold_flips_the_steps_that_it_decides(output: Path, edited: Edited) -> None:
    found = judged_all(output, edited("slo", **SLOWER))
    assert ("4.3.2", "CRITICAL", "OK") in flips(found)
    verdicts = {f["run"].split("-")[1]: (f["was"], f["now"]) for f in found["flips"] if not f["step"]}
    assert verdicts["4.3"][0].startswith("CRITICAL, delivery_worker, FM-NOTI-06")
    assert not verdicts["4.3"][1].startswith("CRITICAL") and found["alarms"] == {"was": 3, "now": 2}


def test_the_evidence_of_the_documents_counts_as_well(output: Path, edited: Edited) -> None:
    stopped = "| delivery.stopped, leases.left_for_long | hint | receiver | - |"
    found = judged_all(output, edited("observations", **{"delivery.stopped, leases.left_for_long": stopped}))
    assert not flips(found) and len(found["flips"]) == 3  # verdicts: no step's status rests on it


@pytest.mark.parametrize("document", ["observations", "numbers"])
def test_a_document_beside_the_code_is_a_policy_too(tmp_path: Path, document: str) -> None:
    text = pack.active_runbook().packs[0].document(document).read_text()
    changed = text.replace("| stands | delivery_worker, FM", "| seems | delivery_worker, FM")
    changed = changed.replace("| `looks.apart` | 2.5 |", "| `looks.apart` | 3.5 |")
    assert changed != text
    (tmp_path / f"{document}.md").write_text(changed)
    book, today = backtest.load_policy(tmp_path / f"{document}.md").book, catalog.load()
    assert (book.observations != today.observations) is (document == "observations")
    assert (book.numbers != today.numbers) is (document == "numbers")


def test_a_targets_own_threshold_is_judged_by_shown_and_kept() -> None:
    section, book = catalog.load().sections["4.3"], catalog.load()
    target = {"nats_url": "nats://127.0.0.1:1", "thresholds": {"delivery": {"silence": "5000 / 15000 s"}}}
    rb = Session(open_context(section, validate({"target": "here"}), Settings(targets={"here": target}), book))
    limits = rb.context.given().limits
    assert limits["delivery.silence"].status(400) is Status.OK is not book.limits["delivery.silence"].status(400)
    found = replace(judged(say("hop.relay"), [limits.value("delivery.silence", 400)]), step="4.3.2")
    again = record.finding_from_json(record.finding(found))
    shown = []
    for lang in messages.LANGUAGES:
        with messages.using(lang):
            shown.append(render.html("finding", f=again, tables=[], dashboard=""))
    assert "83.3 min / 4.17 h</span> <small>(this target&#39;s own)" in shown[0] and "(この対象の個別設定)" in shown[1]
    kept = backtest.load_policy(None).of(json.loads(json.dumps(asdict(rb._header()), default=str)))
    assert kept.own == OWN and kept.limits["delivery.silence"] == limits["delivery.silence"]


@pytest.fixture
def own(output: Path) -> Archive:
    """The sample as if its target had had a threshold of its own."""
    archive = Archive(str(output), "sample")
    lines = archive.artifacts()
    for entry in lines:
        if (name := f"evidence/{entry['name']}.json") in entry["sha256"]:
            run = json.loads(archive.read(name))
            run["header"]["given"]["thresholds"] = OWN
            archive.write(name, content := json.dumps(run).encode())
            entry["sha256"][name] = digest(content)
    archive.write(LOG, b"".join(json.dumps(entry).encode() + b"\n" for entry in lines))
    return archive


def test_a_targets_own_thresholds_stay_unless_others_are_given(own: Archive, edited: Edited) -> None:
    output = Path(own.output)
    docs = edited("slo")
    flip, toml = ("4.3.2", "CRITICAL", "OK"), docs / "runbook.toml"
    assert flip in flips(judged_all(output, None))
    toml.write_text('[targets.default.thresholds]\ndelivery.silence = "5000 / 15000 s"\n')
    assert flip in flips(judged_all(output, docs))
    toml.write_text('[targets.default]\nnats_url = "nats://127.0.0.1"\n')  # it has none any more
    assert not judged_all(output, docs)["flips"]
    # A document that has no such threshold leaves nothing for the target to have.
    edited("slo", **{"`delivery.silence`": "| `delivery.silence` | 5 | 15 | min | 4.1.1, 4.3.2, 5.1.3 | - |"})
    assert backtest.load_policy(docs / "slo.md").of({"given": {"thresholds": OWN}}).own == {}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("notes.txt", "is neither one of runbook.md, slo.md"),
        ("empty", "nor a folder with one of them"),
        ("slo.md", "slo.md:1"),
        ("bytes", "not UTF-8"),
        ("runbook.toml", "runbook.toml: there is no threshold 'delivery.silense' in docs/slo.md: did you mean"),
    ],
)
def test_what_is_no_policy_is_said_in_a_line(output: Path, tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "slo.md").write_bytes(b"\xff\xfe")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "slo.md").write_text("# nothing\n")
    (tmp_path / "runbook.toml").write_text('[targets.x.thresholds]\n"delivery.silense" = "5 / 15 s"\n')
    with pytest.raises((UsageError, CatalogError), match=re.escape(said)):
        backtest.run(str(output), ["sample"], tmp_path / path)


@pytest.mark.slow
def test_the_command(output: Path, edited: Edited, tmp_path: Path) -> None:
    shutil.copytree(output / "sample", output / "other")  # more than one are judged side by side
    (output / "not-an-incident").mkdir()

    def said(*args: str, code: int) -> str:
        done = CliRunner().invoke(cli, ["backtest", *args, "--output", str(output)], standalone_mode=False)
        assert done.return_value == code, done.output
        return done.output

    assert "No verdict would have been different" in said("--policy", str(edited("slo")), code=0)
    given = str(edited("slo", **SLOWER))
    lines = said("--policy", given, "--page", str(tmp_path / "page.html"), code=1)
    assert "2 incidents, 6 runs" in lines and "step 4.3.2: CRITICAL -> OK" in lines
    assert "<td>4.3.2</td>" in (tmp_path / "page.html").read_text()
    report: dict[str, Any] = valid(json.loads(said("sample", "--policy", given, "--json", code=1)), "backtest")
    assert report["alarms"] == {"was": 3, "now": 2} and {f["incident"] for f in report["flips"]} == {"sample"}
