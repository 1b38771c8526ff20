"""`runbook new`: the template of a section or of a pack for another system, and the notebooks of a pack."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from runbook_lib.book import catalog, pack
from runbook_lib.cli.common import CommandGroup, write_file
from runbook_lib.model.usage import UsageError, config_file

_SKELETON = Path(__file__).parent / "skeleton"


@click.group(cls=CommandGroup)
def new() -> None:
    """Create a section or pack from a template; write notebooks."""


@new.command()
@click.option("--pack", "folder", type=click.Path(file_okay=False, path_type=Path), default="own", show_default=True)
@click.option("--check", is_flag=True, help="write nothing: name the notebooks that differ; exit code 1 if any does")
@click.option("--force", is_flag=True, help="replace generated cells that somebody changed, too")
def notebooks(folder: Path, check: bool, force: bool) -> int:
    """Write a pack's notebooks from docs/runbook.md. Cells that somebody added stay."""
    with pack.use_pack(folder):
        differing = write_notebooks(folder, force=force or check, dry=check)
    for path in differing:
        click.echo(path)
    return int(check and bool(differing))


def write_notebooks(folder: Path, *, force: bool = False, dry: bool = False) -> list[Path]:
    """Write the notebooks of an active pack that differ from docs/runbook.md, unless `dry`; return their paths."""
    from runbook_lib.notebook import writer

    own = next(p for p in pack.active_runbook().packs if p.folder == folder.resolve())
    differing = []
    for path, text, kept in writer.notebooks(own, catalog.load(), force=force):
        if kept:
            click.echo(f"{path}: changed by hand, so kept: {', '.join(kept)}; --force replaces them", err=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            differing.append(path if dry else _write(path, text))
    return differing


@new.command()
@click.argument("number")
@click.option(
    "--pack", "folder", type=click.Path(file_okay=False, path_type=Path), default="own", show_default=True,
    help="the folder of the pack; created if it does not exist",
)  # fmt: skip
@click.option("--title", default="A section of our own", show_default=True)
@click.option("--title-ja", default="独自の節", show_default=True)
def section(number: str, folder: Path, title: str, title_ja: str) -> int:
    """Write a section that runs, with its test.

    Notebook, document, question, check, and texts in the pack's languages.
    """
    for path in write_section(number, folder, title, title_ja, catalog.load()):
        click.echo(path)
    asked = f'packs = ["{folder}"]'
    config = config_file()
    if config is None:
        write_file(Path("runbook.toml"), f"{asked}\n")
        click.echo("runbook.toml")
    elif pack.load_folder(folder).name not in {p.name for p in pack.active_runbook().packs}:
        click.echo(f"\nTo activate the pack, add this line to {config}, above all tables:  {asked}")
    click.echo(f"\nIts tests: pytest {folder}    Run it: runbook run {number}")
    return 0


def write_section(number: str, folder: Path, title: str, title_ja: str, book: catalog.Catalog) -> list[Path]:
    """Write a section's skeleton into a pack's folder, which is made where it is not there; the files it is in.

    Raises UsageError for a number or a folder that cannot be used, before anything is written.
    """
    if not re.fullmatch(r"\d(\.\d)?", number):
        raise UsageError(f"'{number}' is not a section number: write it as 8 or 8.1")
    if number in book.sections:
        raise UsageError(f"section {number} already exists: {book.sections[number].en}")
    if not folder.resolve().name.isidentifier():
        raise UsageError(f"'{folder.resolve().name}' cannot be imported: use letters, digits and '_' for the folder")
    there = (folder / "__init__.py").is_file()
    if folder.exists() and not there and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and not a pack")
    system = pack.active_runbook().packs[0]
    languages = pack.load_folder(folder).languages if there else system.languages
    topic = f"section_{number.replace('.', '_')}"
    notebook = f"{number.replace('.', '_').zfill(len(number) + 1)}_own.ipynb"
    words = {
        "number": number, "title": title, "title_ja": title_ja, "topic": topic, "notebook": notebook,
        "name": folder.resolve().name, "system": system.name,
        "heading": " · ".join({"en": title, "ja": title_ja}[lang] for lang in sorted(languages)),
    }  # fmt: skip
    text = partial(_render_skeleton, words=words | {"languages": languages})
    files = {
        folder / "checks" / f"{topic}.py": text("check.py"),
        folder / "sql" / topic / "sessions.sql": text("question.sql"),
        folder / "tests" / f"test_{topic}.py": text("test.py"),
    }
    if taken := [path for path in (*files, folder / "notebooks" / notebook) if path.exists()]:
        raise UsageError(f"{taken[0]} already exists")
    if not there:
        files |= {folder / "__init__.py": text("pack.py"), folder / "checks" / "__init__.py": text("checks.py")}
    added = {
        folder / "docs" / "runbook.md": text("runbook.md"),
        folder / "docs" / "slo.md": text("slo.md"),
        folder / "queries.toml": text("queries.toml"),
        **{folder / "messages" / f"{lang}.toml": text(f"{lang}.toml") for lang in languages},
    }
    for path, content in added.items():
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        files[path] = f"{before}\n{content}" if before else content
    written = [_write(path, content) for path, content in files.items()]
    with pack.use_pack(folder):
        return sorted([*written, *write_notebooks(folder)])


#: The room whose steps a new system gets, by its module: packs are no import of this layer.
_ROOM = "runbook_lib.packs.queues"
_ROLES = {
    "table": "the table, such as public.jobs",
    "id": "its key",
    "state": "the column with the state of a row",
    "waiting": "the states in which a row waits, with commas",
    "working": "the states in which a worker has it",
    "done": "the states in which it has succeeded",
    "failed": "the states in which it has failed",
    "aside": "the states in which nobody is to take it",
    "created": "when a row was added",
    "due": "from when on it may be taken",
    "started": "when a worker took it",
    "lease": "until when the worker has it",
    "finished": "when it ended",
    "owner": "which worker has it",
    "attempts": "how often it was tried",
    "error": "its last error",
    "group": "the name of its queue, if the table has many",
}


def _role_options(command: Any) -> Any:
    told = "the table does not say so, but a row that is done is deleted"
    command = click.option("--deleted-when-done", is_flag=True, help=told)(command)
    for role, what in reversed(_ROLES.items()):
        command = click.option(f"--{role}", metavar="NAME", help=what)(command)
    return command


@new.command(
    epilog="A column that the table lacks is '-'. An expression takes the place of a column, and a condition that of "
    "states; both call the table q: --lease 'q.started_on + q.expire_in', --waiting 'q.locked_at IS NULL'."
)
@click.argument("name")
@_role_options
def system(name: str, *, deleted_when_done: bool, **given: str | None) -> int:
    """Write a pack for a queue of rows in PostgreSQL.

    It is in the database of RUNBOOK_DATABASE_URL, of which only the catalog is read.
    """
    folder = Path(name)
    if not folder.name.isidentifier():
        raise UsageError(f"'{folder.name}' cannot be imported: use letters, digits and '_' for the folder")
    if folder.exists():
        raise UsageError(f"{folder} already exists")
    url = os.environ.get("RUNBOOK_DATABASE_URL")
    if not url:
        raise UsageError("RUNBOOK_DATABASE_URL is not set: name the database, such as postgresql://user@host:5432/db")
    room = pack.load_room(_ROOM)
    tables = room.get(room.hooks["queue_tables"])(url)
    found = _ask_for_missing(room.get(room.hooks["queue_of"]), tables, {k: v for k, v in given.items() if v})
    if deleted_when_done:
        found.roles.pop("done", None)
        found.roles["deleted_when_done"] = True
        found.left.pop("done", None)
    for path in write_system(folder, found.roles):
        click.echo(path)
    click.echo("\nTaken:")
    for role, value in found.roles.items():
        click.echo(f"  {role:<10}{', '.join(value) if isinstance(value, tuple) else value}")
    click.echo("Left out: " + ", ".join(f"{left} ({why})" for left, why in found.left.items()))
    click.echo(f"\nRun it: cd {folder}; runbook triage --target {folder.name}")
    return 0


def _ask_for_missing(propose: Any, tables: Any, given: dict[str, str]) -> Any:
    """Return what is proposed; on a terminal ask for what is not decided. Raises UsageError."""
    while True:
        try:
            return propose(tables, given)
        except UsageError as e:
            if not (option := getattr(e, "option", "")) or not sys.stdin.isatty():
                raise
            given[option] = click.prompt(str(e))


def write_system(folder: Path, roles: dict[str, Any]) -> list[Path]:
    """Write a pack for a queue into a new folder; return its files."""
    render = partial(_render_skeleton, folder=pack.load_room(_ROOM).folder / "skeleton")
    ordered = {role: _literal(roles.get(role)) for role in (*_ROLES, "deleted_when_done") if role in (*roles, "state")}
    words = {"name": folder.name, "table": roles["table"], "roles": ordered}
    named = {"pack.py": "__init__.py", "checks.py": "checks.py", "runbook.md": "docs/runbook.md"}
    named |= {"runbook.toml": "runbook.toml", "README.md": "README.md"}
    files = {folder / to: render(name, words) for name, to in named.items()}
    written = [_write(path, content) for path, content in files.items()]
    with pack.use_pack(folder):
        return sorted([*written, *write_notebooks(folder)])


def _literal(value: Any) -> str:
    if not isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return f"({', '.join(map(_literal, value))},)"


def _write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    return path


def _render_skeleton(name: str, words: Mapping[str, Any], folder: Path = _SKELETON) -> str:
    import jinja2

    source = (folder / f"{name}.j2").read_text(encoding="utf-8")
    template = jinja2.Template(source, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    return str(template.render(words))
