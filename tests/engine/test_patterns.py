"""The patterns of the pack are read from one file: a slip names file and entry, and a judge asks for each of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from runbook_lib.book import catalog, messages, patterns
from runbook_lib.book.pack import Pack, load_room
from runbook_lib.model.usage import UsageError
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.checks import exceptions, publish
from runbook_lib.packs.entitlement.evidence import logins
from runbook_lib.packs.logs.logs import LoginResult
from tests.kit.syntax import called

FOLDERS = [PACK.folder, *(load_room(room).folder for room in PACK.uses)]
SOURCES = {name: source for folder in FOLDERS for name, source in patterns.load(folder).items()}
TREES = [ast.parse(path.read_text(encoding="utf-8")) for folder in FOLDERS for path in folder.rglob("*.py")]
#: Kinds whose name nobody asks for: of a source with one kind, or one that comes before those with an observation.
UNNAMED = {("log field", "id"), ("names", "name"), ("status", "code"), ("server error", "absorbed")}


@pytest.mark.parametrize(
    ("old", "new", "entry", "problem"),
    [
        ("kinds.lost = { patterns", "kinds.lost = { patern", "service log.kinds.lost.patterns", "Field required"),
        ("kinds.sent = {", "kinds.sent = { level = 1,", "service log.kinds.sent.level", "Extra inputs are not"),
        ("form = '{}\\Z'", "from = '{}\\Z'", "run exception.from", "Extra inputs are not"),
        ("form = '{}\\Z'", "form = '\\Z'", "run exception.form", "it has no '{}' where the patterns go"),
        ("form = '{}\\Z'", "form = '({}'", "run exception.form", r"'\(\(\?:\)' is no regular expression: missing"),
        ("'handshake'", "'(hand'", "send error.kinds.no_trust.patterns", r"'\(hand' is no regular expression: missing"),
        ("['does not exist']", "[]", "server error.kinds.undefined.patterns", "there is no pattern"),
        ('"sends.refused"', '"sends.no"', "send error.kinds.refused", "'sends.no' is not among the observations"),
        ('["setting"]', "[setting", "cannot be read", r"Expected '\]'"),
    ],
)
def test_a_malformed_file_names_its_entry(tmp_path: Path, old: str, new: str, entry: str, problem: str) -> None:
    path, text = tmp_path / patterns.FILE, (PACK.folder / patterns.FILE).read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"^{path}: {entry}: {problem}") as e:
        patterns.check_observations(tmp_path, catalog.load().observations)
    assert "\n" not in str(e.value)
    with pytest.raises(UsageError, match=rf"^{path}"):
        catalog.read([Pack("entitlement", tmp_path, docs=PACK.docs), Pack("also", PACK.folder, extends="entitlement")])


def test_a_source_that_nobody_wrote_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"patterns.toml: no source 'send eror': did you mean 'send error'\?"):
        patterns.source(PACK, "send eror")


def test_each_kind_is_asked_for_and_each_that_is_asked_for_is_there() -> None:
    named: dict[str, set[str]] = {}
    for tree in TREES:
        words = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        own = {ast.literal_eval(n.args[1]) for n in calls if ast.unparse(n.func) == "patterns.source"}
        assert own <= set(SOURCES)
        kinds = {kind for name in own for kind in SOURCES[name].kinds}
        assert {ast.literal_eval(n.args[0]) for n in calls if called(n) == "says"} <= kinds
        for name in own:
            named.setdefault(name, set()).update(words)
    assert set(named) == set(SOURCES)
    for _, _, source in logins.SIGNS:
        named[next(name for name in SOURCES if SOURCES[name] is source)] |= {*LoginResult}
    named["publish error"] |= {key.removeprefix("publish.kind_") for key in messages.catalogue("en")}
    every = {(name, kind) for name, source in SOURCES.items() for kind in source.kinds}
    seen = {(n, k) for n, k in every if SOURCES[n].kinds[k].observation or SOURCES[n].kinds[k].fold or k in named[n]}
    assert every - seen == UNNAMED
    assert {*publish.ONE_BY_ONE, *publish.UNWRITTEN} - {"other", "unseen"} <= set(SOURCES["publish error"].kinds)
    assert {*exceptions.FAILED_TRY} <= set(SOURCES["service log"].kinds)


def test_no_other_module_reads_texts_by_regular_expressions() -> None:
    """Those that import `re` read names of their own: of streams, frames, objectives, fields and types."""
    found = {path.stem for path in PACK.folder.rglob("*.py") if "\nimport re\n" in path.read_text(encoding="utf-8")}
    assert found == {"dead_letters", "impact", "leases", "wire"}
