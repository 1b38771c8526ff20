"""Who reads the documents and the settings: the edges, which pass both down; what judges by them is given them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import runbook_lib

ENGINE = Path(runbook_lib.__file__).parent
READ = {"runbook_lib.book.catalog", "runbook_lib.sources.settings"}
EDGES = {
    "cli/*.py",
    "gameday/cli/*.py",
    "integrations/connect.py",
    "packs/*/cli/*.py",
    "dossier/backtest.py",  # its worker processes
    "lab/server.py",  # the hooks of the Jupyter server
    "notebook/session.py",  # what a notebook opens
    "notebook/testing.py",  # what the tests of a pack call
    "runs/executors.py",  # the process of an investigation
    "sources/settings.py",  # a target's own thresholds are read with the target
}
#: Those that still read them within. This list only shrinks.
LEFT = {
    "dossier/postmortem.py",
    "dossier/report.py",
    "view/render.py",
}


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what is imported by its full name, and its name in the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{a.name}", a.asname or a.name) for a in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, a.asname or a.name) for a in node.names)


def reads(code: str) -> bool:
    """Return whether a module calls the `load` of the catalog or of the settings."""
    tree = ast.parse(code)
    names = list(imported(tree))
    loads = {f"{own}.load" for name, own in names if name in READ}
    loads |= {own for name, own in names if name.removesuffix(".load") in READ and name.endswith(".load")}
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) in loads for node in ast.walk(tree))


def test_the_documents_and_the_settings_are_read_at_the_edges() -> None:
    found = {str(f.relative_to(ENGINE)) for f in ENGINE.rglob("*.py") if reads(f.read_text(encoding="utf-8"))}
    within = {name for name in found if not any(fnmatch(name, edge) for edge in EDGES)}
    assert within == LEFT
    assert {edge for edge in EDGES if not any(fnmatch(name, edge) for name in found)} == set()


def test_a_reader_is_found_however_it_is_imported() -> None:
    for code in (
        "from runbook_lib.book import catalog\ncatalog.load()",
        "def f():\n    from runbook_lib.sources import settings as own\n    own.load()",
        "from runbook_lib.book.catalog import load as read\nread()",
        "import runbook_lib.sources.settings\nrunbook_lib.sources.settings.load()",
    ):
        assert reads(code), code
    assert not reads("from runbook_lib.book import catalog\ncatalog.read(())")
