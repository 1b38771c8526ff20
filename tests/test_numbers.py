"""What decides stands in the documents: no number in a judge, none in the documents that nobody reads."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from runbook_lib import catalog, pack, questions

PACK = pack.in_force().packs[0]
LIBRARY = Path(catalog.__file__).parent
MODULES = sorted((PACK.folder / "checks").glob("*.py"))
#: Nothing, one, a half or a pair; an hour, a day, percent, milliseconds, nanoseconds.
PHYSICAL = {0, 1, -1, 2, 24, 60, 100, 1000, 3600, 1e9}
#: How functions that draw are called, and calls whose numbers are layout after so many arguments.
DRAWS, LAYOUT = ("draw",), {"round": 1, "head": 0}
BOOK = catalog.load()


def functions(tree: ast.Module) -> Iterator[ast.AST]:
    """All but the functions that draw."""
    for node in tree.body:
        if not (isinstance(node, ast.FunctionDef) and node.name.startswith(DRAWS)):
            yield node


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


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


TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in PACK.folder.rglob("*.py")]
NAMED = {word for tree in TREES for word in words(tree)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_number_decides_in_a_judge(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [(line, n) for node in functions(tree) for line, n in numbers(node) if n not in PHYSICAL]
    assert not found, f"{path.name}: put into docs/slo.md or docs/failure-modes.md"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_judge_weighs_by_the_documents(path: Path) -> None:
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert "Signal" not in {called(call) for call in calls}, f"{path.name}: `given.speaks` gives the signals"


def test_each_number_and_each_observation_is_read_somewhere() -> None:
    assert not set(BOOK.numbers) - NAMED
    codes = {word for file in (LIBRARY / "sources").glob("*.py") for word in words(ast.parse(file.read_text()))}
    told = {name for name in BOOK.observations if name.partition(".")[0] in ("postgres", "jetstream")}
    assert not {name for name in told if name.partition(".")[2] not in codes}
    assert not set(BOOK.observations) - told - NAMED


def test_what_is_read_is_there() -> None:
    assert not asked(TREES, "number") - {*BOOK.numbers}
    assert not asked(TREES, "speaks") - {*BOOK.observations}


def kinds() -> list[type]:
    modules = [importlib.import_module(f"{PACK.module}.{name}") for name in ("rows", *_names("checks"))]
    every = {v for m in modules for v in vars(m).values() if isinstance(v, type) and v.__module__ == m.__name__}
    return sorted((v for v in every if hasattr(v, "QUESTION")), key=lambda v: (v.__module__, v.__qualname__))


def _names(folder: str) -> list[str]:
    return [f"{folder}.{path.stem}" for path in (PACK.folder / folder).glob("*.py") if path.stem != "__init__"]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")
def test_a_kind_of_row_has_columns_of_its_question(kind: type) -> None:
    columns = questions.query(kind.QUESTION).columns  # type: ignore[attr-defined]
    fields = dataclasses.fields(kind)
    assert not {field.name for field in fields} - {*columns}
    assert all(field.default is not dataclasses.MISSING for field in fields)
    kind()
