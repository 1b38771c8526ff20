"""The past by another policy: what an edit of the documents would have changed, and what an old verdict rests on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from sample import ROOT
from schemas import valid

from runbook_lib import catalog, pack
from runbook_lib.analysis import diagnosis
from runbook_lib.archive import artifact, backtest, policy, rejudge
from runbook_lib.catalog import CatalogError
from runbook_lib.cli.main import cli
from runbook_lib.context import open_context
from runbook_lib.model.finding import Status, judged, say
from runbook_lib.parameters import validate
from runbook_lib.session import Session
from runbook_lib.settings import Settings
from runbook_lib.store import MANIFEST, Archive, digest
from runbook_lib.usage import UsageError
from runbook_lib.view import record, render

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
    """The document that the sample's runs were judged by, with lines replaced."""
    kept = json.loads(next((output / "sample" / "evidence").glob("policy-*.json")).read_bytes())

    def edit(name: str, **lines: str) -> Path:
        text = kept["entitlement"][name]
        for start, line in lines.items():
            text, n = re.subn(rf"(?m)^\| {re.escape(start)} .*$", line, text)
            assert n == 1, start
        (tmp_path / f"{name}.md").write_text(text)
        return tmp_path / f"{name}.md"

    return edit


def judged_all(output: Path, given: Path) -> backtest.Tested:
    (found,) = backtest.run(str(output), ["sample"], given)
    assert not found.unread and found.runs == 3 and found.judged >= 10
    return found


def test_the_same_policy_flips_nothing(output: Path, edited: Edited) -> None:
    found = judged_all(output, edited("slo"))
    assert not found.flips and not found.not_replayable and not found.without_policy
    assert found.detected == (0.0, 0.0) and found.alarms == (3, 3)


def test_another_threshold_flips_the_steps_that_it_decides(output: Path, edited: Edited) -> None:
    found = judged_all(output, edited("slo", **SLOWER))
    assert ("4.3.2", "CRITICAL", "OK") in {(f.step, f.was, f.now) for f in found.flips}
    verdicts = {f.run.split("-")[1]: (f.was, f.now) for f in found.flips if not f.step}
    assert verdicts["4.3"][0].startswith("CRITICAL, delivery_worker, FM-NOTI-06")
    assert not verdicts["4.3"][1].startswith("CRITICAL") and found.alarms == (3, 2)
    # 4.1.1 asks its programs only where nobody has claimed for so long: what they would have said is not known.
    assert {n.step for n in found.not_replayable if "delivery.silence" in n.numbers} >= {"4.1.1"}
    assert not {n.step for n in found.not_replayable} & {f.step for f in found.flips}


def test_a_weight_of_the_documents_counts_as_well(output: Path, edited: Edited) -> None:
    stopped = "| delivery.stopped | receiver 0.3 | - |"
    found = judged_all(output, edited("failure-modes", **{"delivery.stopped": stopped}))
    assert all(not f.step for f in found.flips) and len(found.flips) == 3  # verdicts: no step's status rests on it


def test_a_dossier_is_judged_by_what_held_then(
    output: Path, edited: Edited, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = Archive(str(output), "sample")
    judged, apart = rejudge.judge_all(archive)
    assert judged and not apart
    # The documents of today are others: nothing of the dossier is, and a backtest of them says what would be.
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(edited("slo", **SLOWER), docs / "slo.md")
    first, *others = pack.in_force().packs
    monkeypatch.setattr(pack, "_in_force", lambda *_: pack.Runbook((replace(first, docs=docs), *others)))
    assert rejudge.judge_all(archive) == (judged, [])
    assert policy.in_force({}).keys() != {policy.of_run(archive.manifest()[0])}
    # Without the policy of then there is only that of today.
    lines = archive.manifest()
    for entry in lines:
        entry["sha256"] = {n: d for n, d in entry.get("sha256", {}).items() if "policy-" not in n}
    archive.write(MANIFEST, b"".join(json.dumps(entry).encode() + b"\n" for entry in lines))
    assert rejudge.judge_all(archive)[1]


def test_a_targets_own_threshold_is_judged_by_shown_and_kept() -> None:
    section, book = catalog.load().sections["4.3"], catalog.load()
    target = {"nats_url": "nats://127.0.0.1:1", "thresholds": {"delivery": {"silence": "5000 / 15000 s"}}}
    rb = Session(open_context(section, validate({"target": "here"}), Settings(targets={"here": target}), book))
    limits = rb.context.given().limits
    assert limits["delivery.silence"].status(400) is Status.OK is not book.limits["delivery.silence"].status(400)
    found = replace(judged(say("hop.relay"), [limits.value("delivery.silence", 400)]), step="4.3.2")
    again = record.finding_from_json(record.finding(found))
    shown = [render.html("finding", lang, f=again, tables=[], dashboard="") for lang in ("en", "ja")]
    assert "5,000 / 15,000</span> <small>(this target&#39;s own)" in shown[0] and "(この対象の個別設定)" in shown[1]
    ran = artifact.Run("4.3", (found,), diagnosis.conclude([found], book), vars(rb._header()), {}, True)
    made = artifact.make(
        nbformat.v4.new_notebook(), ran, {"incident_id": "I"}, stem="s", started="2026-01-31", ended="2026-01-31"
    )
    (kept,) = (policy.read(content) for name, content in made.files.items() if "policy-" in name)
    assert kept.own == OWN and kept.limits["delivery.silence"] == limits["delivery.silence"]


@pytest.fixture
def own(output: Path) -> Archive:
    """The sample as if its target had had a threshold of its own."""
    archive = Archive(str(output), "sample")
    lines = archive.manifest()
    content = b""
    for entry in lines:
        if name := policy.of_run(entry):
            content = content or json.dumps(json.loads(archive.read(name)) | {"runbook.toml": OWN}).encode()
            del entry["sha256"][name]
            entry["sha256"]["evidence/policy-own.json"] = digest(content)
    archive.write("evidence/policy-own.json", content)
    archive.write(MANIFEST, b"".join(json.dumps(entry).encode() + b"\n" for entry in lines))
    return archive


def test_a_dossier_is_judged_by_the_thresholds_that_its_target_had(own: Archive) -> None:
    _, apart = rejudge.judge_all(own)  # what was said then rests on others
    assert {(a.params["step"], a.params["was"], a.params["now"]) for a in apart} >= {("4.3.2", "CRITICAL", "OK")}


def test_a_targets_own_thresholds_stay_unless_others_are_given(own: Archive, edited: Edited, tmp_path: Path) -> None:
    output = Path(own.output)
    for name in ("failure-modes", "runbook", "operations"):
        edited(name)
    edited("slo", **{"`delivery.silence`": SLOWER["`delivery.silence`"].replace("15000", "20000")})
    found = judged_all(output, tmp_path)  # its own goes before the document's
    assert not found.flips and not found.not_replayable
    edited("slo")
    toml = tmp_path / "runbook.toml"
    toml.write_text('[targets.default.thresholds]\ndelivery.silence = "5000 / 15000 s"\n')
    found = judged_all(output, tmp_path)
    assert not found.flips and not found.not_replayable
    toml.write_text('[targets.default]\nnats_url = "nats://127.0.0.1"\n')  # it has none any more
    assert ("4.3.2", "OK", "CRITICAL") in {(f.step, f.was, f.now) for f in judged_all(output, tmp_path).flips}
    # A document that has no such threshold leaves nothing for the target to have.
    docs = edited("slo", **{"`delivery.silence`": "| `delivery.silence` | 5 | 15 | min | 4.1.1, 4.3.2, 5.1.3 | - |"})
    assert policy.changed(docs).of("default", next(policies(own))).own == {}


def policies(archive: Archive) -> Iterator[catalog.Catalog]:
    return (kept.policy for kept in rejudge.runs(archive) if isinstance(kept, rejudge.Kept) and kept.policy)


def test_what_was_swapped_is_no_policy(output: Path) -> None:
    archive = Archive(str(output), "sample")
    name = policy.of_run(archive.manifest()[0])
    assert name and digest(archive.read(name)) == archive.manifest()[0]["sha256"][name]
    archive.write(name, archive.read(name).replace(b"15", b"16"))
    assert rejudge.judge_all(archive) == (0, [])  # the seal says that it was changed


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("notes.txt", "is none of runbook.md, slo.md"),
        ("empty", "holds none"),
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


def test_the_command(output: Path, edited: Edited, tmp_path: Path) -> None:
    shutil.copytree(output / "sample", output / "other")  # more than one are judged side by side
    (output / "not-an-incident").mkdir()

    def said(*args: str, code: int) -> str:
        done = CliRunner().invoke(cli, ["backtest", *args, "--output", str(output)], standalone_mode=False)
        assert done.return_value == code, done.output
        return done.output

    assert "Nothing that can be judged would have been otherwise" in said("--policy", str(edited("slo")), code=0)
    given = str(edited("slo", **SLOWER))
    lines = said("--policy", given, "--page", str(tmp_path / "page.html"), code=1)
    assert "2 incidents, 6 runs" in lines and "step 4.3.2: CRITICAL -> OK" in lines
    assert "can not be replayed (2 runs)" in lines
    assert "<td>4.3.2</td>" in (tmp_path / "page.html").read_text()
    report: dict[str, Any] = valid(json.loads(said("sample", "--policy", given, "--json", code=1)), "backtest")
    assert report["alarms"] == {"was": 3, "now": 2} and {f["incident"] for f in report["flips"]} == {"sample"}
