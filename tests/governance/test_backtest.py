"""The past by another policy: what an edit of the documents would have changed, and what an old verdict rests on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner

from runbook_lib.book import catalog, messages, pack
from runbook_lib.book.catalog import CatalogError
from runbook_lib.book.parameters import validate
from runbook_lib.checks.context import open_context
from runbook_lib.cli.main import cli
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.dossier import artifact, backtest, policy, rejudge
from runbook_lib.model.finding import Status, judged, say
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from runbook_lib.sources.settings import Settings
from runbook_lib.store import record
from runbook_lib.store.archive import MANIFEST, Archive
from runbook_lib.store.files import digest
from runbook_lib.store.run import Run
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
def edited(tmp_path: Path, output: Path) -> Edited:
    """The documents that the sample's runs were judged by, in one lines replaced, each by one with as many cells."""
    kept = json.loads(next((output / "sample" / "evidence").glob("policy-*.json")).read_bytes())["entitlement"]

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


def judged_all(output: Path, given: Path) -> dict[str, Any]:
    report, unread = backtest.run(str(output), ["sample"], given)
    assert not unread and report["runs"] == 3 and report["steps"] >= 10
    return report


def flips(report: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(f["step"], f["was"], f["now"]) for f in report["flips"] if f["step"]}


def test_the_same_policy_flips_nothing(output: Path, edited: Edited) -> None:
    found = judged_all(output, edited("slo"))
    assert not found["flips"] and not found["without_policy"]
    assert found["detected"] == [] and found["alarms"] == {"was": 3, "now": 3}


def test_another_threshold_flips_the_steps_that_it_decides(output: Path, edited: Edited) -> None:
    found = judged_all(output, edited("slo", **SLOWER))
    assert ("4.3.2", "CRITICAL", "OK") in flips(found)
    verdicts = {f["run"].split("-")[1]: (f["was"], f["now"]) for f in found["flips"] if not f["step"]}
    assert verdicts["4.3"][0].startswith("CRITICAL, delivery_worker, FM-NOTI-06")
    assert not verdicts["4.3"][1].startswith("CRITICAL") and found["alarms"] == {"was": 3, "now": 2}


def test_a_weight_of_the_documents_counts_as_well(output: Path, edited: Edited) -> None:
    stopped = "| delivery.stopped | receiver 0.3 | - |"
    found = judged_all(output, edited("observations", **{"delivery.stopped": stopped}))
    assert not flips(found) and len(found["flips"]) == 3  # verdicts: no step's status rests on it


@pytest.fixture
def earlier_layout(tmp_path: Path) -> Path:
    """Today's documents as earlier versions had them: two documents with all tables, and earlier columns."""
    (texts,) = catalog.read_texts(pack.active_runbook().packs[:1]).values()
    folder = tmp_path / "earlier"
    folder.mkdir()
    for name, parts in {"slo": ("slo", "numbers"), "failure-modes": ("failure-modes", "observations")}.items():
        text = "\n".join(texts[part] for part in parts)
        text = text.replace("| Supports | Contradicts |", "| Speaks for | Speaks against |")
        (folder / f"{name}.md").write_text(text)
    return folder


@pytest.mark.parametrize("given", ["", "failure-modes.md", "slo.md"])
def test_documents_of_an_earlier_layout_are_read(earlier_layout: Path, given: str) -> None:
    assert policy.load_other(earlier_layout / given).book == catalog.load()


def test_an_archived_policy_of_an_earlier_layout_is_read(earlier_layout: Path) -> None:
    ((name, texts),) = catalog.read_texts(pack.active_runbook().packs[:1]).items()
    earlier = {key: texts[key] for key in ("runbook", "operations")}
    earlier |= {file.stem: file.read_text() for file in earlier_layout.iterdir()}
    assert policy.read(json.dumps({name: earlier}).encode()) == catalog.load()


@pytest.mark.parametrize("document", ["observations", "numbers"])
def test_a_document_beside_the_code_is_a_policy_too(tmp_path: Path, document: str) -> None:
    text = pack.active_runbook().packs[0].document(document).read_text()
    changed = text.replace("| delivery.stopped | delivery_worker 0.9", "| delivery.stopped | delivery_worker 0.8")
    changed = changed.replace("| `looks.apart` | 2.5 |", "| `looks.apart` | 3.5 |")
    assert changed != text
    (tmp_path / f"{document}.md").write_text(changed)
    book, today = policy.load_other(tmp_path / f"{document}.md").book, catalog.load()
    assert (book.observations != today.observations) is (document == "observations")
    assert (book.numbers != today.numbers) is (document == "numbers")


def test_a_dossier_is_judged_by_what_held_then(
    output: Path, edited: Edited, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = Archive(str(output), "sample")
    judged, apart = rejudge.judge_all(archive, catalog.load())
    assert judged
    # The documents of today are others: nothing of the dossier is, and a backtest of them says what would be.
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(edited("slo", **SLOWER) / "slo.md", docs)
    first, *others = pack.active_runbook().packs
    monkeypatch.setattr(pack, "_load_runbook", lambda *_: pack.Runbook((replace(first, docs=docs), *others)))
    assert rejudge.judge_all(archive, catalog.load()) == (judged, apart)
    assert policy.current_policy({}).keys() != {policy.policy_file_of(archive.manifest()[0]["sha256"])}
    # Without the policy of then there is only that of today.
    lines = archive.manifest()
    for entry in lines:
        entry["sha256"] = {n: d for n, d in entry.get("sha256", {}).items() if "policy-" not in n}
    archive.write(MANIFEST, b"".join(json.dumps(entry).encode() + b"\n" for entry in lines))
    assert len(rejudge.judge_all(archive, catalog.load())[1]) > len(apart)


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
    assert "5,000 / 15,000</span> <small>(this target&#39;s own)" in shown[0] and "(この対象の個別設定)" in shown[1]
    header = json.loads(json.dumps(asdict(rb._header()), default=str))
    ran = Run("4.3", header, [record.finding(found)], diagnosis.conclude([found], book))
    made = artifact.make(nbformat.v4.new_notebook(), ran, {"incident_id": "I"}, "s")
    (kept,) = (policy.read(content) for name, content in made.files.items() if "policy-" in name)
    assert kept.own == OWN and kept.limits["delivery.silence"] == limits["delivery.silence"]


@pytest.fixture
def own(output: Path) -> Archive:
    """The sample as if its target had had a threshold of its own."""
    archive = Archive(str(output), "sample")
    lines = archive.manifest()
    content = b""
    for entry in lines:
        if name := policy.policy_file_of(entry.get("sha256", {})):
            content = content or json.dumps(json.loads(archive.read(name)) | {"runbook.toml": OWN}).encode()
            del entry["sha256"][name]
            entry["sha256"]["evidence/policy-own.json"] = digest(content)
    archive.write("evidence/policy-own.json", content)
    archive.write(MANIFEST, b"".join(json.dumps(entry).encode() + b"\n" for entry in lines))
    return archive


def test_a_dossier_is_judged_by_the_thresholds_that_its_target_had(own: Archive) -> None:
    _, apart = rejudge.judge_all(own, catalog.load())  # what was said then rests on others
    assert {(a.params["step"], a.params["was"], a.params["now"]) for a in apart} >= {("4.3.2", "CRITICAL", "OK")}


def test_a_targets_own_thresholds_stay_unless_others_are_given(own: Archive, edited: Edited) -> None:
    output = Path(own.output)
    docs = edited("slo", **{"`delivery.silence`": SLOWER["`delivery.silence`"].replace("15000", "20000")})
    assert not judged_all(output, docs)["flips"], "its own goes before the document's"
    edited("slo")
    toml = docs / "runbook.toml"
    toml.write_text('[targets.default.thresholds]\ndelivery.silence = "5000 / 15000 s"\n')
    assert not judged_all(output, docs)["flips"]
    toml.write_text('[targets.default]\nnats_url = "nats://127.0.0.1"\n')  # it has none any more
    assert ("4.3.2", "OK", "CRITICAL") in flips(judged_all(output, docs))
    # A document that has no such threshold leaves nothing for the target to have.
    edited("slo", **{"`delivery.silence`": "| `delivery.silence` | 5 | 15 | min | 4.1.1, 4.3.2, 5.1.3 | - |"})
    sealed = next(run for run in rejudge.runs(own, catalog.load()) if isinstance(run, rejudge.SealedRun))
    assert sealed.policy and policy.load_other(docs / "slo.md").of("default", sealed.policy).own == {}


def test_what_was_swapped_is_no_policy(output: Path) -> None:
    archive = Archive(str(output), "sample")
    name = policy.policy_file_of(archive.manifest()[0]["sha256"])
    assert name and digest(archive.read(name)) == archive.manifest()[0]["sha256"][name]
    archive.write(name, archive.read(name).replace(b"15", b"16"))
    assert rejudge.judge_all(archive, catalog.load()) == (0, [])  # the seal says that it was changed


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


def test_a_row_that_a_kept_policy_does_not_have_is_that_of_today() -> None:
    """A threshold that came with a later version makes no older dossier one that cannot be judged."""
    (name,) = policy.current_policy({})
    texts = json.loads(policy.current_policy({})[name])
    pack_name = next(name for name, documents in texts.items() if "slo" in documents)
    lines = [line for line in texts[pack_name]["slo"].splitlines() if not line.startswith("| `drain.empty_in`")]
    texts[pack_name]["slo"] = "\n".join(lines).replace("| `backlog.due` | 50 |", "| `backlog.due` | 60 |")
    book, today = policy.read(json.dumps(texts).encode()), catalog.load()
    assert book.limits["drain.empty_in"] == today.limits["drain.empty_in"]
    assert book.limits["backlog.due"].warning == 60 and today.limits["backlog.due"].warning == 50
