"""The documents are the configuration: they are read, agree with the code, and a slip names file and line."""

from __future__ import annotations

import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.book import catalog
from runbook_lib.book.catalog import ROLES, CatalogError
from runbook_lib.book.pack import Pack
from runbook_lib.checks.check import checks
from runbook_lib.model.usage import UsageError
from runbook_lib.packs.entitlement import PACK, ROOT
from runbook_lib.sources.settings import Settings

CHECKS = checks()


def test_every_step_of_a_notebook_has_exactly_one_check() -> None:
    book = catalog.load()
    steps = {s.id for section in book.runnable().values() for s in section.steps}
    assert steps == set(CHECKS)


def test_a_value_carries_its_threshold_and_where_it_comes_from() -> None:
    value = catalog.load().limits.value("backlog.oldest_due", 12)
    assert value.threshold
    assert value.threshold.origin == "docs/slo.md `backlog.oldest_due`"


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"backlog.deu": "1 / 2 rows"}, "no threshold 'backlog.deu' in docs/slo.md: did you mean 'backlog.due'?"),
        ({"SLO": "1 / 2 rows"}, "known: backlog.due, "),
        ({"backlog.due": "100 / 500 s"}, "write it like '50 / 500 rows'"),
        ({"backlog.due": "100 / - rows"}, "write it like '50 / 500 rows'"),  # questions rest on what is there
        ({"drain.z": "2 / 1 ratio"}, "write it like '2.33 / - ratio'"),
        ({"backlog": {"due": [100, 500]}}, "write it like '50 / 500 rows'"),
        ({"backlog.due": "-1 / 5 rows"}, "write it like"),
        ({"backlog": {"due": "600 / 500 rows"}}, "above 500 would be critical before it is a warning"),
        ({"delivery.success": "99 / 99.5 %"}, "below 99.5 would be critical before it is a warning"),
    ],
)
def test_a_targets_own_threshold_that_is_none_is_one_line(own: dict[str, Any], says: str) -> None:
    config = Settings(targets={"x": {"nats_url": "nats://127.0.0.1", "thresholds": own}})
    with pytest.raises(UsageError) as e:
        config.target("x")
    assert str(e.value).startswith("settings: targets.x.thresholds: ") and says in str(e.value)
    assert "\n" not in str(e.value)


def test_a_targets_own_threshold_changes_its_numbers_and_nothing_else() -> None:
    book = catalog.load()
    tuned = book.tuned({"delivery": {"success": "99 / 98.5 %"}, "backlog.due": "50 / 500 rows"})
    success = tuned.limits["delivery.success"]
    assert (success.warning, success.critical, success.below, success.unit) == (99, 98.5, True, "%")
    assert success.own and success.origin == "runbook.toml `delivery.success`"
    assert {n for n in book.limits if tuned.limits[n] != book.limits[n]} == {"delivery.success"}
    assert not any(limit.own for limit in book.limits.values()) and book.tuned({}) is book


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("observations", "numbers"):
        shutil.copy(PACK.document(name), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "at", "problem"),
    [
        ("slo.md", "| ENT-C | Entitlement |", "| ENT-C | Entitlement | too | many |", "", "cells under"),
        ("slo.md", "| = 0 rows |", "| none |", "", "is not like '< 5 s'"),
        ("slo.md", "| `backlog.due` | 50 |", "| `backlog.due` | fifty |", "", "limit 'fifty'"),
        ("numbers.md", "| `recovery.now` | 4 |", "| `recovery.now` | - |", "", "value is missing"),
        (
            "slo.md",
            "| 4.1.1, 4.3.2, 5.1.3 |",
            "| 4.1.11, 4.3.2, 5.1.3 |",
            "| 4.1.11",
            "step '4.1.11' is not in runbook.md",
        ),
        ("operations.md", "| 100 | transient | 2 | 120 |", "| 100 | transient | 2 | - |", "", "pause is missing"),
        ("failure-modes.md", "- Hop: database", "- Hop: databse", "", "hop 'databse'"),
        ("failure-modes.md", "- Symptom:", "- Symptoms:", "", "'- Symptom: ...' is missing"),
        ("failure-modes.md", "- Remedies: -", "-", "", "'- Remedies: ...' is missing"),
        ("observations.md", "| WARN | FM-OB-01 |", "| WARN | FM-OB-99 |", "", "failure mode 'FM-OB-99'"),
        ("observations.md", "| WARN | FM-OB-01 |", "| LOUD | FM-OB-01 |", "", "level 'LOUD'"),
        (
            "observations.md",
            "| relay, FM-OB-07",
            "| relais, FM-OB-07",
            "",
            "support 'relais' is not a hop or a failure mode",
        ),
        (
            "observations.md",
            "| own | relay, FM-OB-07",
            "| ours | relay, FM-OB-07",
            "",
            "class 'ours' is not among own, ",
        ),
        ("runbook.md", "| 4.1.1 |", "| 4.7.1 |", "", "step '4.7.1' is not of section 4.1"),
        ("runbook.md", "| 4.1.2 |", "| 4.7.1 |", "| 4.7.1 |", "step '4.7.1' is not of section 4.1"),
        ("runbook.md", "- 4.1.2: ", "- 4.1.9: ", "## 4.1 ", "step '4.1.9' is not of section 4.1"),
        ("runbook.md", "Step | What is asked |", "Step | What |", "| 2.1 |", "the column 'What is asked' is missing"),
        ("runbook.md", "| 確認すること |", "| 質問 |", "| 2.1 |", "the column '確認すること' is missing"),
        ("observations.md", "| 意味 |", "| 題 |", "", "the column '意味' is missing"),
        ("runbook.md", "|---|---|---|\n| 2.1 |", "|---|\n| 2.1 |", "## 2 ", "no table whose first column is 'Step'"),
        ("runbook.md", "- Takes: about 5 s", "-", "## 2 ", "'- Takes: ...' is missing"),
        ("runbook.md", "- Role: reach", "- Role: reech", "## 2 ", "role 'reech' is not among reach, triage, "),
        ("runbook.md", "- Role: triage", "- Role: logs, reach", "## 3 ", "section 2 has the role 'reach' already"),
    ],
)
def test_a_malformed_document_names_file_and_line(
    root: Path, file: str, old: str, new: str, at: str, problem: str
) -> None:
    """The line with `at`, where it is told."""
    path = Pack("copy", root).document(file.removesuffix(".md"))
    text = path.read_text(encoding="utf-8")
    assert old in text
    text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    line = text[: text.index(at)].count("\n") + 1 if at else r"\d+"
    with pytest.raises(CatalogError, match=f"{file}:{line}: .*{problem}"):
        catalog.read([Pack("copy", root)])


def test_what_stands_in_a_fence_is_no_heading_and_no_bullet(root: Path) -> None:
    path = root / "docs" / "runbook.md"
    fence = "```sh\n# comment\n- Takes: for ever\n```"
    path.write_text(path.read_text(encoding="utf-8").replace("\n| Step |", f"\n{fence}\n\n| Step |"), encoding="utf-8")
    read, plain = catalog.read([Pack("copy", root)]).sections["4.1"], catalog.load().sections["4.1"]
    assert read.steps == plain.steps != ()
    assert read.takes == plain.takes


def test_a_section_has_the_role_that_its_bullet_gives(root: Path) -> None:
    path = root / "docs" / "runbook.md"
    text = path.read_text(encoding="utf-8")
    today = catalog.load()
    (root / "own" / "docs").mkdir(parents=True)
    bullets = (
        "- Role: {}\n- Notebook: -\n- Reads: -\n- Takes: -\n\n| Step | What is asked | 確認すること |\n|---|---|---|\n"
    )
    own = Pack("own", root / "own", extends="copy")
    for role, said in (("logs", r"section 4\.5 has the role 'logs' already"), ("-", None)):
        (root / "own" / "docs" / "runbook.md").write_text(
            f"## 8 Own · 独自\n\n{bullets.format(role)}", encoding="utf-8"
        )
        with pytest.raises(CatalogError, match=said) if said else nullcontext():
            both = catalog.read([Pack("copy", root), own])
    assert [both.section_with(role) for role in ROLES] == [today.section_with(role) for role in ROLES]
    path.write_text(re.sub("- Role: (?!reach).*\n", "", text), encoding="utf-8")
    book = catalog.read([Pack("copy", root)])
    assert {role: book.section_with(role) for role in ROLES} == dict.fromkeys(ROLES, "") | {"reach": "2"}
    with pytest.raises(UsageError, match=r"no section of docs/runbook\.md has the role 'recover': add the bullet"):
        book.required_section("recover")


def test_a_missing_document(root: Path) -> None:
    (root / "docs" / "slo.md").unlink()
    with pytest.raises(CatalogError, match=r"slo.md:1: cannot be read"):
        catalog.read([Pack("copy", root)])
    (root / "docs" / "slo.md").write_bytes("障害".encode("cp932"))
    with pytest.raises(UsageError, match=r"slo.md:1: cannot be read \(it is not UTF-8\)"):
        catalog.read([Pack("copy", root)])
