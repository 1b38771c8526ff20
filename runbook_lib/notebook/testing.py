"""Helpers for the tests of a pack: find inconsistencies, and run a judge. No database is needed."""

from __future__ import annotations

import ast
import fnmatch
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import nbformat
import pandas as pd

from runbook_lib.book import catalog, messages, pack, queries
from runbook_lib.book.catalog import Catalog, CatalogError
from runbook_lib.book.pack import Pack
from runbook_lib.checks.check import checks
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import PROPOSAL_PARTS, Finding, Proposal, proposal_text
from runbook_lib.sources.settings import facts_of
from runbook_lib.view.queries import FILE, declared


def judge(folder: Path, step: str, **frames: pd.DataFrame) -> Finding:
    """Return the finding of a step's judge for these frames, now; check that its texts exist in every language."""
    with pack.use_pack(folder):
        given = JudgeInput(catalog.load(), pd.Timestamp.now("UTC"), 60, facts_of({}))
        found = checks()[step].finding(frames, given)
        for lang in messages.LANGUAGES:
            for text in (found.headline, *found.notes):
                messages.text(text, lang)
            for proposal in found.proposals:
                for part in PROPOSAL_PARTS:
                    messages.text(proposal_text(proposal, part), lang)
        return found


def problems(folder: Path) -> list[str]:
    """Return the inconsistencies in a pack's folder, one line each; [] if there are none."""
    with pack.use_pack(folder) as runbook:
        own = next(p for p in runbook.packs if p.folder == folder.resolve())
        try:
            book = catalog.load()
        except CatalogError as e:
            return [str(e)]
        return [
            *_step_problems(own, book),
            *_notebook_problems(own, book),
            *_mode_problems(own, book),
            *_declaration_problems(own, book),
            *(
                problem
                for each in (own, *(p for p in runbook.packs if p.room))
                for problem in (*_message_problems(each), *_query_problems(each), *_name_problems(each, book))
            ),
        ]


def _step_problems(own: Pack, book: Catalog) -> Iterator[str]:
    planned = {step.id for section in book.runnable().values() for step in section.steps}
    answered = [c.step for c in own.get(own.checks)]
    yield from (f"step {s} has a check and is in no notebook's section" for s in answered if s not in planned)
    yield from (f"step {s} has no check" for s in sorted(planned - checks().keys()))


def _notebook_problems(own: Pack, book: Catalog) -> Iterator[str]:
    for section in book.runnable().values():
        if section.notebook is None or not own.has_notebook(section.notebook):
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


def _mode_problems(own: Pack, book: Catalog) -> Iterator[str]:
    """Yield the failure modes that no observation supports, and the remedies that are no proposal."""
    supported = {s.about for seen in book.observations.values() for s in seen.signals if s.weight > 0}
    # A mode of a room has none where the system's own rows say what supports its own mode.
    file = own.document("failure-modes")
    written = file.read_text(encoding="utf-8") if file.is_file() else ""
    for mode in book.failure_modes.values():
        if mode.id not in supported and f"### {mode.id} " in written:
            yield f"no observation supports {mode.id}"
        for name in mode.remedies:
            if proposal_text(Proposal(name, "", ""), "title").key not in messages.catalogue("en"):
                yield f"{mode.id}: the remedy {name} is no proposal"


def _message_problems(own: Pack) -> Iterator[str]:
    keys = {
        lang: set(messages.flat(tomllib.loads(file.read_text(encoding="utf-8"))))
        for lang in own.languages
        if (file := own.folder / "messages" / f"{lang}.toml").is_file()
    }
    every = set[str]().union(*keys.values())
    for lang in own.languages:
        yield from (f"messages/{lang}.toml has no {key}" for key in sorted(every - keys.get(lang, set())))


def _query_problems(own: Pack) -> Iterator[str]:
    for file in sorted((own.folder / "sql").rglob("*.sql")):
        name = str(file.relative_to(own.folder / "sql").with_suffix(""))
        if name not in queries.names():
            continue  # a statement of an action
        try:
            queries.query(name)
        except KeyError as e:
            yield f"sql/{name}.sql has no line '-- {e.args[0]}: ...'"


def _declaration_problems(own: Pack, book: Catalog) -> Iterator[str]:
    """Yield the names of `queries.toml` that no section or sql folder has."""
    steps = {s.id for section in book.sections.values() for s in section.steps}
    for step, names in declared(own.folder / FILE).items():
        if step not in steps:
            yield f"{FILE}: step {step} is in no section"
        known = queries.names()
        yield from (f"{FILE}: step {step}: no query '{n}' in sql/" for n in names if " " not in n and n not in known)


def names_in(argument: ast.expr) -> Iterator[str]:
    """Yield the names that an argument can be, as far as the code tells; of an f-string a pattern, such as `hop.*`."""
    match argument:
        case ast.Constant(value=str(name)):
            yield name
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)
        case ast.IfExp(body=one, orelse=other):
            yield from (*names_in(one), *names_in(other))


def _name_problems(own: Pack, book: Catalog) -> Iterator[str]:
    """Yield the names in the code that no document or catalogue has; a composed name needs one that fits."""
    known: dict[str, Collection[str]] = {
        "say": messages.catalogue("en"),
        "evidence": book.observations,
        "number": book.numbers,
    }
    for file in sorted(own.folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called: str = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
            for name in names_in(node.args[0]) if called in known else ():
                if name not in known[called] and not fnmatch.filter(known[called], name):
                    yield f"{file.name}:{node.lineno}: {called}({name!r}) is in no document of the pack"
