"""What decides stands in the documents: no number in a judge, none in the documents that nobody reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from runbook_lib.book import catalog, pack, patterns
from runbook_lib.book.pack import load_room
from runbook_lib.packs.entitlement.checks.program import SIGNS, ProcessState
from tests.kit import ROOT

LIBRARY = Path(catalog.__file__).parents[1]
PACK = pack.active_runbook().packs[0]
#: What decides beside the judges: the rest of the pack, and the pack of the example.
DECIDING = sorted(p for folder in (PACK.folder, ROOT / "examples" / "procrastinate") for p in folder.rglob("*.py"))
ROOMS = [load_room(room).folder for room in PACK.uses]
JUDGING = (path for room in ROOMS for path in room.glob("*.py") if "JudgeInput" in path.read_text(encoding="utf-8"))
MODULES = sorted([*(PACK.folder / "checks").glob("*.py"), *JUDGING])
#: Nothing, one, a half or a pair; an hour, a day, percent, milliseconds, nanoseconds.
PHYSICAL = {0, 1, -1, 2, 24, 60, 100, 1000, 3600, 1e9}
#: How functions that describe a chart are called, and calls whose numbers are layout after so many arguments.
CHARTS, LAYOUT = ("chart",), {"round": 1, "head": 0}
BOOK = catalog.load()


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def functions(tree: ast.Module) -> Iterator[ast.AST]:
    """All but the functions that describe a chart."""
    for node in tree.body:
        if not (isinstance(node, ast.FunctionDef) and node.name.startswith(CHARTS)):
            yield node


def numbers(node: ast.AST) -> Iterator[tuple[int, float]]:
    """Line and value of each numeric literal; positions in a sequence and layout are none."""
    if isinstance(node, ast.Subscript):
        yield from numbers(node.value)
        return
    if isinstance(node, ast.Call) and called(node) in LAYOUT:
        for part in (node.func, *node.args[: LAYOUT[called(node)]]):
            yield from numbers(part)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield node.lineno, float(node.value)
    for child in ast.iter_child_nodes(node):
        yield from numbers(child)


def words(node: ast.AST, *, but: tuple[str, ...] = ("say",)) -> Iterator[str]:
    """The strings of code, without those that name a message."""
    if isinstance(node, ast.Call) and called(node) in but:
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from words(child)


def asked(trees: list[ast.Module], method: str) -> set[str]:
    """The literal names that a method is called with."""
    return {
        str(node.args[0].value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and called(node) == method
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


TREES = [
    ast.parse(path.read_text(encoding="utf-8")) for folder in (PACK.folder, *ROOMS) for path in folder.rglob("*.py")
]
ENGINE = [
    ast.parse((LIBRARY / name).read_text(encoding="utf-8"))
    for name in ("diagnosis/questions.py", "notebook/session.py")
]
NAMED = {word for tree in TREES + ENGINE for word in words(tree)}
NAMED |= {kind.observation for source in patterns.load(PACK.folder).values() for kind in source.kinds.values()}
NAMED |= {
    f"publish.{now}_{kind}"
    for now in ("fails", "retries")
    for kind in ("unseen", "no_subject", "no_receipt", *patterns.load(PACK.folder)["publish error"].kinds)
}
NAMED |= {f"{side}.{state}" for side in SIGNS for state in (*ProcessState, "elsewhere", "locked")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_number_decides_in_a_judge(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [(line, n) for node in functions(tree) for line, n in numbers(node) if n not in PHYSICAL]
    assert not found, f"{path.name}: put into docs/slo.md, numbers.md or observations.md"


def code(node: ast.AST) -> Iterator[ast.AST]:
    """What is evaluated: all but annotations, imports and docstrings."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not text and not isinstance(child, ast.Import | ast.ImportFrom):
                yield from code(child)


def named(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("path", DECIDING, ids=lambda p: p.stem)
def test_a_judge_weighs_by_the_documents(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert "Signal" not in {named(node) for node in code(tree)}, f"{path.name}: `given.evidence` gives the signals"
    renamed = [a for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names if a.name == "Signal"]
    assert all(a.asname is None for a in renamed), f"{path.name}: Signal under another name"


@pytest.mark.parametrize("path", DECIDING, ids=lambda p: p.stem)
def test_no_failure_mode_is_named_in_code(path: Path) -> None:
    texts = [n.value for n in code(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)]
    found = [text for text in texts if isinstance(text, str) and "FM-" in text]
    assert not found, f"{path.name}: what is seen is an observation; observations.md has the modes that it supports"


def test_each_number_and_each_observation_is_read_somewhere() -> None:
    assert not set(BOOK.numbers) - NAMED
    codes = {word for file in (LIBRARY / "sources").glob("*.py") for word in words(ast.parse(file.read_text()))}
    told = {name for name in BOOK.observations if name.partition(".")[0] in ("postgres", "jetstream")}
    assert not {name for name in told if name.partition(".")[2] not in codes}
    assert not set(BOOK.observations) - told - NAMED


def test_what_is_read_is_there() -> None:
    assert not asked(TREES, "number") - {*BOOK.numbers}
    assert not asked(TREES, "evidence") - {*BOOK.observations}
