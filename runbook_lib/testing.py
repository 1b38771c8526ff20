"""For the tests of a pack: is it whole, and what does a judge of it say? No database is needed."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import nbformat
import pandas as pd

from runbook_lib import catalog, messages, pack, questions
from runbook_lib.catalog import Catalog, CatalogError
from runbook_lib.checks import checks
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, say
from runbook_lib.pack import Pack
from runbook_lib.settings import facts_of

#: What a proposal says beside its command.
PROPOSED = ("title", "preconditions", "effect", "risk", "undo", "verify")


def judge(folder: Path, step: str, **frames: pd.DataFrame) -> Finding:
    """What the judge of a step says of these frames, at this moment; its words exist in both languages."""
    with pack.tried(folder):
        given = Given(catalog.load(), pd.Timestamp.now("UTC"), 60, facts_of({}))
        found = checks()[step].finding(frames, given)
        for lang in messages.LANGUAGES:
            for text in (found.headline, *found.notes):
                messages.text(text, lang)
            for proposal in found.proposals:
                for part in PROPOSED:
                    messages.text(say(f"proposal.{proposal.name}.{part}", **proposal.params), lang)
        return found


def problems(folder: Path) -> list[str]:
    """What does not fit together in a pack's folder, one line each; [] is whole."""
    with pack.tried(folder) as runbook:
        own = next(p for p in runbook.packs if p.folder == folder.resolve())
        try:
            book = catalog.load()
        except CatalogError as e:
            return [str(e)]
        return [
            *_steps(own, book), *_notebooks(own, book), *_modes(book), *_words(own), *_questions(own),
            *_names(own, book),
        ]  # fmt: skip


def _steps(own: Pack, book: Catalog) -> Iterator[str]:
    planned = {step.id for section in book.runnable().values() for step in section.steps}
    answered = [c.step for c in own.get(own.checks)]
    yield from (f"step {s} has a check and is in no notebook's section" for s in answered if s not in planned)
    yield from (f"step {s} has no check" for s in sorted(planned - checks().keys()))


def _notebooks(own: Pack, book: Catalog) -> Iterator[str]:
    for section in book.runnable().values():
        if section.notebook is None or section.notebook.parent != own.notebook("x").parent:
            continue
        name = section.notebook.name
        if not section.notebook.is_file():
            yield f"{name} of section {section.number} is not there"
            continue
        nb = nbformat.read(section.notebook, as_version=4)
        cells = [c for c in nb.cells if c.cell_type == "code"]
        if any(c.outputs or c.execution_count is not None for c in cells):
            yield f"{name} was saved with outputs"
        steps = [
            node.args[0].value
            for cell in cells
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.Call)
            and getattr(node.func, "attr", "") == "step"
            and isinstance(node.args[0], ast.Constant)
        ]
        if steps != [s.id for s in section.steps]:
            yield f"{name} has the steps {steps}, and docs/runbook.md {[s.id for s in section.steps]}"


def _modes(book: Catalog) -> Iterator[str]:
    """A failure mode that nothing can name, and a remedy that nothing can propose."""
    spoken_for = {s.about for signals in book.observations.values() for s in signals if s.weight > 0}
    for mode in book.failure_modes.values():
        if mode.id not in spoken_for:
            yield f"no observation speaks for {mode.id}"
        for name in mode.remedies:
            if f"proposal.{name}.title" not in messages.catalogue("en"):
                yield f"{mode.id}: the remedy {name} is no proposal"


def _words(own: Pack) -> Iterator[str]:
    keys = {
        lang: set(messages.flat(tomllib.loads(file.read_text(encoding="utf-8"))))
        for lang in messages.LANGUAGES
        if (file := own.folder / "messages" / f"{lang}.toml").is_file()
    }
    every = set[str]().union(*keys.values())
    for lang in messages.LANGUAGES:
        yield from (f"messages/{lang}.toml has no {key}" for key in sorted(every - keys.get(lang, set())))


def _questions(own: Pack) -> Iterator[str]:
    for file in sorted((own.folder / "sql").rglob("*.sql")):
        name = str(file.relative_to(own.folder / "sql").with_suffix(""))
        if name not in questions.names():
            continue  # a statement of an action
        try:
            if not questions.query(name).columns:
                yield f"sql/{name}.sql names no column"
        except KeyError as e:
            yield f"sql/{name}.sql has no line '-- {e.args[0]}: ...'"


def _names(own: Pack, book: Catalog) -> Iterator[str]:
    """What the code says by name, and what no document or catalogue has."""
    known: dict[str, Collection[str]] = {
        "say": messages.catalogue("en"),
        "speaks": book.observations,
        "number": book.numbers,
    }
    for file in sorted(own.folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
                name = node.args[0].value
                if called in known and isinstance(name, str) and name not in known[called]:
                    yield f"{file.name}:{node.lineno}: {called}({name!r}) is in no document of the pack"
