"""Packs: the engine knows no system, a team's own section is one folder, and a slip in it is one line."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import click
import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner

import runbook_lib
from runbook_lib.actions import action, proposals
from runbook_lib.book import catalog, messages, pack, queries
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.cli.main import cli
from runbook_lib.cli.new import write_section
from runbook_lib.lab import copies
from runbook_lib.model.finding import Status, judged, say
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook import testing
from runbook_lib.receiver import routes
from runbook_lib.sources import settings
from runbook_lib.store.archive import Archive
from tests.kit import ROOT
from tests.kit.command import alone, runbook
from tests.kit.servers import Servers

ENGINE = Path(runbook_lib.__file__).parent


@pytest.fixture
def here(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, without any settings."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(here: Path) -> Path:
    """A pack with a section of one's own, named in the settings."""
    write_section("8.1", here / "own", "Our own", "独自の節", catalog.load())
    (here / "runbook.toml").write_text('packs = ["own"]\n')
    return here / "own"


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    # Python takes a module of the same size and second for the one that it has compiled.
    later = path.stat().st_mtime + 2
    os.utime(path, (later, later))
    queries.read.cache_clear()


def test_the_engine_knows_no_system() -> None:
    files = (
        p for p in ENGINE.rglob("*") if p.is_file() and p.suffix != ".pyc" and not {"packs", "gameday"} & set(p.parts)
    )
    named = [str(p) for p in files if re.search("entitlement|notification", p.read_text("utf-8"), re.IGNORECASE)]
    assert named == []


def test_the_engine_knows_no_section_by_its_number() -> None:
    files = [p for p in ENGINE.rglob("*") if p.is_file() and not {"packs", "gameday"} & set(p.parts)]
    known: dict[str, set[str]] = {}
    for file in (p for p in files if p.suffix == ".py"):
        constants = (n.value for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Constant))
        if numbers := {c for c in constants if isinstance(c, str) and re.fullmatch(r"[2-9](\.\d){0,2}", c)}:
            known[file.name] = numbers
    assert known == {
        "alert.py": {"4"},  # the version of a webhook
        "catalog.py": {"4.1"},  # an example
        "redaction.py": {"2", "3"},  # parts of a pattern
    }
    texts = {p: p.read_text("utf-8") for p in files if p.suffix in (".toml", ".j2")}
    assert {
        p.name for p, text in texts.items() if re.search(r"\b[2-7]\.[1-6]\b|[Ss]ection [2-7]|\d [章節]", text)
    } == set()


def test_the_system_s_own_pack_is_found_like_any_other(here: Path) -> None:
    own, *rooms, gameday = pack.active_runbook().packs
    assert all(room.room for room in rooms) and own.uses == tuple(room.module for room in rooms)
    assert own.name == "entitlement" and own.module == "runbook_lib.packs.entitlement"
    assert gameday.extends == own.name


def test_a_room_that_another_uses_too_is_there_once(tmp_path: Path) -> None:
    uses = ("runbook_lib.packs.queues", "runbook_lib.packs.changes")
    (tmp_path / "__init__.py").write_text(
        f"from pathlib import Path\nfrom runbook_lib.book.pack import Pack\nPACK = Pack('own', Path(), uses={uses})\n"
    )
    with pack.use_pack(tmp_path) as runbook:
        names = [p.name for p in runbook.packs if p.room]
    assert names == ["queues", "postgres", "changes", "logs", "postmortem"]


def test_commands_whose_packages_are_not_installed_are_not_listed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called all the same, they say what to install."""
    monkeypatch.setitem(pack.EXTRAS, "sandbox", ("no_such_package",))
    listed = CliRunner().invoke(cli, ["--help"]).output
    assert "triage" in listed and "Practise" not in listed
    called = CliRunner().invoke(cli, ["sandbox", "up"])
    assert "pip install '.[sandbox]' in the checkout, or 'FILE.whl[sandbox]'" in str(called.exception)


def test_help_lists_each_command_once_in_its_group() -> None:
    shown = CliRunner().invoke(cli, ["--help"], terminal_width=100).output
    heads = re.findall(r"^([A-Z][a-z]+):$", shown, re.MULTILINE)
    assert heads == ["Options", *(g.capitalize() for g in pack.GROUPS)]
    words = [c.name.split() for c in pack.active_runbook().commands]
    assert sorted(re.findall(r"^  ([a-z]+) ", shown, re.MULTILINE)) == sorted({first for first, *_ in words})
    assert len({last for *_, last in words}) == len(words)
    assert set(action.actions()) == {"restart", "scale", "set", "redrive", "canary"}


def test_an_action_says_which_package_its_installation_leaves_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "runbook_lib.governance.ledger", None)
    with pytest.raises(UsageError, match=r"leaves out runbook_lib\.governance\.ledger; install all of runbook_lib"):
        pack.hook("ledger")


def test_a_target_says_that_its_runner_is_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "runbook.toml").write_text(
        '[targets.pods]\ndatabase_url = "postgresql://u@127.0.0.1:1/x"\nworkloads = { runner = "supervisorctl" }\n'
    )
    assert settings.load().target("pods").facts.workloads.runner == "supervisorctl"
    monkeypatch.setitem(sys.modules, "runbook_lib.gameday.supervisor", None)
    with pytest.raises(UsageError, match=r"^supervisorctl: .* leaves out runbook_lib\.gameday\.supervisor;"):
        settings.load().target("pods")


def test_a_rare_command_stands_in_its_group_and_its_old_name_is_a_hidden_alias() -> None:
    within = CliRunner().invoke(cli, ["archive", "--help"], terminal_width=100).output
    listed = re.findall(r"^  ([a-z]+) ", within.partition("Commands:")[2], re.MULTILINE)
    assert listed == ["backtest", "baseline", "verify"]
    for name in listed:
        short, long = (CliRunner().invoke(cli, [*group, name, "--help"]) for group in ([], ["archive"]))
        assert short.output.replace(f" {name}", f" archive {name}", 1) == long.output and short.exit_code == 0
        assert cli.get_command(click.Context(cli), name).hidden  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_new_section_is_whole_and_its_tests_pass(here: Path) -> None:
    write_section("8.1", here / "own", "Our own", "独自の節", catalog.load())
    write_section("9", here / "own", "Another", "別の節", catalog.load())
    assert testing.problems(here / "own") == []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "own"],
        cwd=here, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_a_new_section_runs_like_those_of_the_system(here: Path, embedded: Servers) -> None:
    env = {**os.environ, **embedded.env}
    assert runbook("new", "section", "8.1", "--title", "Our own", env=env, cwd=here).returncode == 0
    assert (here / "runbook.toml").read_text() == 'packs = ["own"]\n'
    listed = runbook("sections", env=env, cwd=here).stdout
    assert "08_1_own.ipynb" in listed and "8.1.1" in listed and "04_1_not_delivered.ipynb" in listed
    done = runbook("run", "8.1", "--incident", "INC-1", "--json", env=env, cwd=here)
    said = json.loads(done.stdout)
    assert (done.returncode, said["runs"][0]["findings"][0]["step"]) == (0, "8.1.1"), done.stderr
    assert "No session waits for a lock" in said["runs"][0]["findings"][0]["headline"]
    assert "Our own" in (here / "outputs" / "INC-1" / "index.html").read_text(encoding="utf-8")
    assert runbook("verify", "INC-1", "--checkpoint", said["seal"], env=env, cwd=here).returncode == 0


@pytest.mark.parametrize(("language", "heading", "column"), [("en", "Our own", "What"), ("ja", "独自の節", "確認")])
def test_a_new_pack_of_a_system_in_one_language_has_that_one_alone(
    here: Path, monkeypatch: pytest.MonkeyPatch, language: str, heading: str, column: str
) -> None:
    """Its texts are shown in it whatever language is asked for; those of the engine are not."""
    book, system = catalog.load(), replace(pack.active_runbook().packs[0], languages=(language,))
    with monkeypatch.context() as one_language:
        one_language.setattr(pack, "_pack_under_test", [pack.Runbook((system,))])
        written = {p.name: p for p in write_section("8.1", here / "own", "Our own", "独自の節", book)}
    assert {"en.toml", "ja.toml"} & written.keys() == {f"{language}.toml"}
    text, cells = (written[name].read_text(encoding="utf-8") for name in ("runbook.md", "08_1_own.ipynb"))
    assert text.startswith(f"## 8.1 {heading}\n") and f"\n| Step | {column}" in text and "\n|---|---|\n" in text
    assert f"# 8.1 {heading}" in cells and '"ja": [' not in cells
    assert testing.problems(here / "own") == []
    found = testing.judge(here / "own", "8.1.1", sessions=pd.DataFrame([{"connected": 9, "waiting": 0}]))
    with pack.use_pack(here / "own"):
        section = catalog.load().sections["8.1"]
        assert section.en == section.ja == section.words() == heading
        assert len({messages.text(found.headline, lang) for lang in messages.LANGUAGES}) == 1
        assert len({messages.text(say("ui.next_sections"), lang) for lang in messages.LANGUAGES}) == 2


def test_a_language_that_the_engine_does_not_have_is_refused(own: Path) -> None:
    rewrite(own / "__init__.py", "extends=", "languages=('de',), extends=")
    with pytest.raises(UsageError, match="languages must be among en, ja"):
        pack.load_folder(own)


@pytest.fixture
def bare(here: Path) -> Path:
    """The example, where no section has a role that a command needs."""
    shutil.copytree(ROOT / "examples" / "procrastinate", here / "procrastinate")
    document = here / "procrastinate" / "docs" / "runbook.md"
    text = re.sub("- Role: .*\n", "", document.read_text(encoding="utf-8"))
    document.write_text(text.replace("\n- Notebook: 04_2", "\n- Role: logs\n- Notebook: 04_2"), encoding="utf-8")
    (here / "runbook.toml").write_text(
        'packs = ["procrastinate"]\n[targets.default]\ndatabase_url = "postgresql://u@127.0.0.1:1/x"\n'
    )
    return here


def test_a_command_whose_section_the_runbook_does_not_have_says_so(bare: Path) -> None:
    """The others do without: no section is named next, and the dossier has its page."""
    done = runbook("run", "2", "--incident", "INC-1", "--json", env=os.environ, cwd=bare)
    said = json.loads(done.stdout)
    assert (done.returncode, said["verdict"]["next_sections"]) == (Status.UNKNOWN.value, []), done.stderr
    assert (bare / "outputs" / "INC-1" / "index.html").is_file()
    for role, *words in (
        ("triage", "triage"),
        ("triage", "baseline"),
        ("triage", "serve", "--port", "0"),
        ("recover", "run", "6", "--wait", "1m"),
        ("flow", "watch"),
        ("postmortem", "postmortem", "INC-1"),
    ):
        done = runbook(*words, env=os.environ, cwd=bare)
        assert done.returncode == 64 and f"no section of docs/runbook.md has the role '{role}'" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_proposal_is_of_the_section_with_its_role_else_of_the_step_that_proposes_it(here: Path) -> None:
    def sections(given: JudgeInput, which: str) -> list[str]:
        proposed = (proposals.restart(given, which), proposals.logs(given, which), proposals.pods(given, which))
        blocker = proposals.end_blocker(given, 7, "x", idle=True)
        found = judged(say("ui.next_sections"), proposals=(*proposed, blocker))
        check = Check("8.1.1", lambda rb: {}, lambda *_: found)
        return [p.section for p in check.finding({"any": pd.DataFrame()}, given).proposals]

    def given() -> JudgeInput:
        return JudgeInput(catalog.load(), pd.Timestamp(0, tz="UTC"), 60, settings.facts_of({}))

    assert sections(given(), "notification") == ["5.1", "4.5", "8.1", "5.2"]
    with pack.use_pack(ROOT / "examples" / "procrastinate"):
        assert sections(given(), "worker") == ["4.1", "4.1", "8.1", "8.1"]


def test_a_recovery_is_looked_at_by_the_triage_where_no_section_is_for_it(here: Path) -> None:
    book = catalog.load()
    assert routes.recovery_section() == "6"
    triage = replace(book, sections={n: s for n, s in book.sections.items() if n != "6"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "load", lambda: triage)
        assert routes.recovery_section() == "3"


def test_a_new_section_is_in_the_lab_with_its_own_documents(own: Path) -> None:
    notebook = own / "notebooks" / "08_1_own.ipynb"
    nb = nbformat.read(notebook, as_version=4)
    nb.cells.append(nbformat.v4.new_markdown_cell("[text](../docs/runbook.md)", id="text"))
    nbformat.write(nb, notebook)
    folder = Path(copies.prepare_copies(Archive("outputs", "INC-1"), "default", catalog.load()))
    copy = (folder / "08_1_own.ipynb").read_text(encoding="utf-8")
    assert "](docs/own/runbook.md)" in copy and "INC-1" in copy
    assert (folder / "docs" / "own" / "runbook.md").is_file()
    assert "## 4.1" in (folder / "docs" / "runbook.md").read_text(encoding="utf-8")


def test_notebooks_follow_the_document_and_keep_what_a_person_wrote(own: Path) -> None:
    document, notebook = own / "docs" / "runbook.md", own / "notebooks" / "08_1_own.ipynb"

    def write(*options: str, differs: int = 0) -> str:
        done = runbook("new", "notebooks", *options, env=os.environ, cwd=own.parent)
        assert done.returncode == (differs if "--check" in options else 0)
        assert done.stdout.count("08_1_own.ipynb") == differs
        return done.stderr

    def cells() -> dict[str, str]:
        return {c.id: c.source for c in nbformat.read(notebook, as_version=4).cells}

    def put(name: str, source: str, behind: str) -> None:
        nb = nbformat.read(notebook, as_version=4)
        at = [c.id for c in nb.cells].index(behind) + 1
        nb.cells[at - (name == behind) : at] = [nbformat.v4.new_code_cell(source, id=name)]
        nbformat.write(nb, notebook)

    write("--check")
    put("mine", "rb.why()", "step-8-1-1")
    write("--check")
    rewrite(document, "Does a session wait", "Does any session wait")
    write("--check", differs=1)
    assert write(differs=1) == "" and "Does any session" in cells()["text-8-1-1"]
    put("conclude", "rb.conclude()  # mine", "conclude")
    put("text-8-1-9", "of a step that is gone", "mine")
    rewrite(document, "- Takes: about 1 s", "- Takes: about 9 s")
    assert "changed by hand, so kept: intro, text-8-1-9, conclude" in write(differs=1)
    assert (cells()["conclude"], "text-8-1-9" in cells()) == ("rb.conclude()  # mine", True)
    write("--force", differs=1)
    assert "9 s" in cells()["intro"] and cells()["conclude"] == "rb.conclude()" and "text-8-1-9" not in cells()
    assert [*cells()][4:6] == ["step-8-1-1", "mine"]
    notebook.write_text("notes")
    assert "08_1_own.ipynb is not a notebook" in runbook("new", "notebooks", env=os.environ, cwd=own.parent).stderr


@pytest.mark.parametrize(
    ("number", "folder", "said"),
    [
        ("eight", "own", "'eight' is not a section number"),
        ("4.1", "own", "section 4.1 already exists"),
        ("8.1", "my-own", "'my-own' cannot be imported"),
        ("8.1", "full", "full is not empty and not a pack"),
    ],
)
def test_what_cannot_be_begun_is_said_before_anything_is_written(
    here: Path, number: str, folder: str, said: str
) -> None:
    (here / "full").mkdir()
    (here / "full" / "something").touch()
    with pytest.raises(UsageError, match=said):
        write_section(number, here / folder, "t", "題", catalog.load())
    assert sorted(p.name for p in here.rglob("*")) == ["full", "something"]


@pytest.mark.parametrize(
    ("packs", "init", "said"),
    [
        ('["nowhere"]', "", "'nowhere' is no folder with an __init__.py"),
        ('"own"', "", "packs is a list of folders or names"),
        ('["own"]', "", "has no PACK"),
        ('["own"]', "import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        ('["own"]', "PACK = Pack('own', Path(__file__).parent, extends='another')", "'own' extends 'another'"),
    ],
)
def test_a_slip_in_what_is_asked_for_is_one_line(here: Path, packs: str, init: str, said: str) -> None:
    (here / "own").mkdir()
    (here / "own" / "__init__.py").write_text(
        f"from pathlib import Path\nfrom runbook_lib.book.pack import Pack\n{init}\n"
    )
    (here / "runbook.toml").write_text(f"packs = {packs}\n")
    done = runbook("sections", env=os.environ, cwd=here)
    assert done.returncode == 64 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_installed_pack_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("theirs", "nothing_of_that_name", pack.GROUP)
    monkeypatch.setattr(pack, "entry_points", lambda group: EntryPoints([broken]))
    with pytest.raises(UsageError, match=r"^packs: theirs cannot be imported: ModuleNotFoundError: .*$"):
        pack._installed_packs.__wrapped__()


@pytest.mark.slow
def test_a_slip_in_a_document_is_one_line_also_where_runs_would_begin(own: Path) -> None:
    rewrite(own / "docs" / "slo.md", "| 1 | 5 |", "| one | 5 |")
    done = alone("run", "8.1", cwd=own.parent)
    assert done.returncode == 64 and "slo.md:3: limit 'one' is not a number" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ("CHECKS = nothing", "cannot be imported: NameError: name 'nothing' is not defined"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that"),
    ],
)
def test_a_slip_in_a_check_is_one_line_also_where_runs_would_begin(own: Path, slip: str, said: str) -> None:
    with (own / "checks" / "section_8_1.py").open("a") as file:
        file.write(f"\n{slip}\n")
    env = {**os.environ, "RUNBOOK_NATS_URL": "nats://127.0.0.1:9"}
    done = alone("run", "8.1", cwd=own.parent, env=env)
    assert done.returncode == Status.UNKNOWN.value and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_two_answers_to_one_question_are_refused(own: Path) -> None:
    rewrite(own / "docs" / "runbook.md", "8.1", "4.1")
    (problem,) = testing.problems(own)
    assert "runbook.md:1: section 4.1 is there already" in problem


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("checks/section_8_1.py", '"8.1.1"', '"8.1.2"', "step 8.1.2 has a check and is in no notebook's section"),
        ("messages/ja.toml", "nobody", "somebody", "messages/ja.toml has no section_8_1.nobody"),
        ("notebooks/08_1_own.ipynb", '8.1.1\\"', '8.1.9\\"', "08_1_own.ipynb has the steps ['8.1.9']"),
        ("sql/section_8_1/sessions.sql", "-- cost: catalog\n", "", "sessions.sql has no line '-- cost: ...'"),
        ("checks/section_8_1.py", "limits.value(", "number('nine', ", "number('nine') is in no document"),
        ("checks/section_8_1.py", '"section_8_1.nobody"', 'f"section_8_1.by_{seen}"', "by_*') is in no document"),
        ("docs/slo.md", "| 8.1.1 |", "| 8.1.7 |", "step '8.1.7' is not in runbook.md"),
    ],
)
def test_what_does_not_fit_together_is_named(own: Path, file: str, old: str, new: str, said: str) -> None:
    rewrite(own / file, old, new)
    assert any(said in p for p in testing.problems(own)), testing.problems(own)


def test_a_failure_mode_that_nothing_can_name_or_mend_is_told(own: Path) -> None:
    bullets = {
        "Hop": "relay", "Symptom": "x", "Detection": "x", "Mitigation": "x", "SLO": "-", "Sections": "8.1",
        "Excluded by": "-", "Remedies": "restart_notification, hope", "Told by": "8.1.1",
    }  # fmt: skip
    lines = ["### FM-OWN-01 Ours · 独自", "", *(f"- {name}: {text}" for name, text in bullets.items())]
    (own / "docs" / "failure-modes.md").write_text("\n".join(lines), encoding="utf-8")
    assert testing.problems(own) == [
        "no observation supports FM-OWN-01",
        "FM-OWN-01: the remedy hope is no proposal",
    ]


@pytest.mark.parametrize("folder", ["runbook_lib/packs/entitlement", "examples/procrastinate"])
def test_a_pack_of_ours_is_whole(folder: str) -> None:
    assert testing.problems(ROOT / folder) == []
