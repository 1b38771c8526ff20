"""The past by another policy: what an edit of the documents would have changed, and what an old verdict rests on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sample import ROOT
from schemas import valid

from runbook_lib import pack
from runbook_lib.archive import backtest, policy, rejudge
from runbook_lib.catalog import CatalogError
from runbook_lib.cli.main import cli
from runbook_lib.store import MANIFEST, Archive, digest
from runbook_lib.usage import UsageError

Edited = Callable[..., Path]
#: A worker may be silent for hours.
SLOWER = {"`delivery.silence`": "| `delivery.silence` | 5000 | 15000 | s | 4.1.1, 4.3.2, 5.1.3 | - |"}


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


def judged(output: Path, given: Path) -> backtest.Tested:
    (found,) = backtest.run(str(output), ["sample"], given)
    assert not found.unread and found.runs == 3 and found.judged >= 10
    return found


def test_the_same_policy_flips_nothing(output: Path, edited: Edited) -> None:
    found = judged(output, edited("slo"))
    assert not found.flips and not found.not_replayable and not found.without_policy
    assert found.detected == (0.0, 0.0) and found.alarms == (3, 3)


def test_another_threshold_flips_the_steps_that_it_decides(output: Path, edited: Edited) -> None:
    found = judged(output, edited("slo", **SLOWER))
    assert ("4.3.2", "CRITICAL", "OK") in {(f.step, f.was, f.now) for f in found.flips}
    verdicts = {f.run.split("-")[1]: (f.was, f.now) for f in found.flips if not f.step}
    assert verdicts["4.3"][0].startswith("CRITICAL, delivery_worker, FM-NOTI-06")
    assert not verdicts["4.3"][1].startswith("CRITICAL") and found.alarms == (3, 2)
    # 4.1.1 asks its programs only where nobody has claimed for so long: what they would have said is not known.
    assert {n.step for n in found.not_replayable if "delivery.silence" in n.numbers} >= {"4.1.1"}
    assert not {n.step for n in found.not_replayable} & {f.step for f in found.flips}


def test_a_weight_of_the_documents_counts_as_well(output: Path, edited: Edited) -> None:
    stopped = "| delivery.stopped | receiver 0.3 | - |"
    found = judged(output, edited("failure-modes", **{"delivery.stopped": stopped}))
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
    assert policy.in_force().keys() != {policy.of_run(archive.manifest()[0])}
    # Without the policy of then there is only that of today.
    lines = archive.manifest()
    for entry in lines:
        entry["sha256"] = {n: d for n, d in entry.get("sha256", {}).items() if "policy-" not in n}
    archive.write(MANIFEST, b"".join(json.dumps(entry).encode() + b"\n" for entry in lines))
    assert rejudge.judge_all(archive)[1]


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
    ],
)
def test_what_is_no_policy_is_said_in_a_line(output: Path, tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "slo.md").write_bytes(b"\xff\xfe")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "slo.md").write_text("# nothing\n")
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
